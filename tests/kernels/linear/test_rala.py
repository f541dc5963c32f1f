"""RALA against its matrix, its weights of the keys, and the rank that they add."""

import pytest
import torch
from torch.nn.functional import elu

from gnomon.kernels.linear.rala import rala
from gnomon.kernels.mask import CAUSAL


def draw(queries: int = 6, keys: int = 6):
    torch.manual_seed(0)
    return [torch.randn(1, n, 1, 4, dtype=torch.float64) for n in (queries, keys, keys)]


def matrix(q, k, scale, eps=1e-6):
    q, k = elu(q) + 1, elu(k) + 1
    alpha = len(k) * (scale * q.mean(0) @ k.T).softmax(0)
    torch.testing.assert_close(alpha.sum(), torch.tensor(float(len(k)), dtype=torch.float64))
    scores = q @ (alpha[:, None] * k).T / len(k)
    return scores / (scores.sum(-1, keepdim=True) + eps)


@pytest.mark.parametrize(("queries", "keys"), [(6, 6), (3, 8)])
def test_equals_the_matrix(queries, keys):
    q, k, v = draw(queries, keys)
    o, state = rala(q, k, v)
    assert state is None
    torch.testing.assert_close(o[0, :, 0], matrix(q[0, :, 0], k[0, :, 0], 0.5) @ v[0, :, 0])


def test_without_weights_it_is_plain_division():
    """Scale 0 makes all keys equal."""
    q, k, v = draw()
    scores = (elu(q[0, :, 0]) + 1) @ (elu(k[0, :, 0]) + 1).T
    plain = scores / scores.sum(-1, keepdim=True)
    torch.testing.assert_close(rala(q, k, v, scale=0.0, eps=0.0)[0][0, :, 0], plain @ v[0, :, 0])


def test_the_keys_that_the_queries_want_on_average_win():
    """With a huge scale, the softmax over keys is a choice of one, and everybody reads its value."""
    q, k, v = draw()
    best = ((elu(q) + 1).mean(1, keepdim=True) * (elu(k) + 1)).sum(-1).argmax(1).item()
    o, _ = rala(q, k, v, scale=1e4)
    torch.testing.assert_close(o, v[:, best : best + 1].expand_as(o), atol=1e-5, rtol=0)


def test_rotation_by_nothing_is_nothing():
    q, k, v = draw()
    zero = torch.zeros(1, 6, 1, 2, dtype=torch.float64)
    torch.testing.assert_close(rala(q, k, v, angles_q=zero, angles_k=zero)[0], rala(q, k, v)[0])


def test_it_is_never_causal():
    q, k, v = draw()
    with pytest.raises(ValueError, match="rala: causal self attention is not defined for it"):
        rala(q, k, v, mask=CAUSAL)
