"""MALA against its matrix, and its claim: a longer query looks more sharply."""

import pytest
import torch
from torch.nn.functional import elu

from gnomon.kernels.linear.mala import mala
from gnomon.kernels.mask import CAUSAL
from gnomon.kernels.moments import grid_angles


def draw(tokens: int = 6):
    torch.manual_seed(0)
    return [torch.randn(1, tokens, 1, 4, dtype=torch.float64) for _ in range(3)]


def weights(q, k, scale=0.5, eps=1e-6, turned=None):
    q, k = elu(q) + 1, elu(k) + 1
    x = scale / len(k) * q @ k.T
    c = x.sum(-1, keepdim=True)
    if turned is not None:
        x = scale / len(k) * (turned(q) @ turned(k).mH).real
    return (1 + 1 / (c + eps)) * x - c / len(k)


def test_by_hand():
    """f(0) = 1 and f(1) = 2: c = (1 * 2 + 1 * 1) / 2, so the weights are 5/3 - 3/4 and 5/6 - 3/4."""
    q = torch.zeros(1, 1, 1, 1, dtype=torch.float64)
    k = torch.tensor([1.0, 0.0], dtype=torch.float64).reshape(1, 2, 1, 1)
    v = torch.eye(2, dtype=torch.float64).reshape(1, 2, 1, 2)
    o, _ = mala(q, k, v, scale=1.0, eps=0.0)
    torch.testing.assert_close(o.flatten(), torch.tensor([5 / 3 - 3 / 4, 5 / 6 - 3 / 4], dtype=torch.float64))


def test_equals_the_matrix_and_its_rows_sum_to_one():
    q, k, v = draw()
    matrix = weights(q[0, :, 0], k[0, :, 0])
    torch.testing.assert_close(matrix.sum(-1), torch.ones(6, dtype=torch.float64), atol=1e-5, rtol=0)
    torch.testing.assert_close(mala(q, k, v)[0][0, :, 0], matrix @ v[0, :, 0])
    o, _ = mala(q, k, v, mask=CAUSAL, block=4)
    for t in range(1, 7):
        torch.testing.assert_close(o[0, t - 1, 0], weights(q[0, :t, 0], k[0, :t, 0])[-1] @ v[0, :t, 0])


def test_rotation_turns_the_scores_and_not_the_normaliser():
    q, k, v = draw()
    angles = grid_angles((2, 3), 4).double()

    def turned(x):
        return torch.view_as_complex(x.unflatten(-1, (2, 2))) * torch.exp(1j * angles[0, :, 0])

    matrix = weights(q[0, :, 0], k[0, :, 0], turned=turned)
    o, _ = mala(q, k, v, angles_q=angles, angles_k=angles)
    torch.testing.assert_close(o[0, :, 0], matrix @ v[0, :, 0])


@pytest.mark.parametrize("impl", ["reference", "chunk"])
def test_a_longer_query_sharpens(impl):
    """Values one-hot, so that outputs are weights; division by the sum would leave the spread where it was."""
    torch.manual_seed(0)
    q, k = torch.rand(1, 1, 1, 4, dtype=torch.float64), torch.randn(1, 6, 1, 4, dtype=torch.float64)
    v = torch.eye(6, dtype=torch.float64).reshape(1, 6, 1, 6)
    spreads = []
    for factor in (1, 3, 9):
        o, _ = mala(factor * q, k, v, impl=impl)
        spreads.append((o.max() - o.min()).item())
    assert spreads[0] < spreads[1] < spreads[2]


@pytest.mark.parametrize("impl", ["reference", "chunk"])
def test_with_a_large_mass_only_the_difference_from_the_mean_is_left(impl):
    """1 / c is gone: A is x - c / n, linear in the query's features."""
    q, k, _ = draw()
    v = torch.eye(6, dtype=torch.float64).reshape(1, 6, 1, 6)
    x = 0.5 / 6 * (elu(q[0, :, 0]) + 1) @ (elu(k[0, :, 0]) + 1).T
    o, _ = mala(q, k, v, scale=0.5e6, impl=impl)
    torch.testing.assert_close(o[0, :, 0] / 1e6, x - x.mean(-1, keepdim=True), rtol=0, atol=1e-5)
