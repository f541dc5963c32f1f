"""LinFusion against its matrix; its means are over the keys, also when there are other numbers of queries."""

import pytest
import torch
from torch.nn.functional import elu

from gnomon.kernels.linear.linfusion import linfusion


def draw(queries: int, keys: int):
    torch.manual_seed(0)
    return [torch.randn(1, n, 1, 4, dtype=torch.float64) for n in (queries, keys, keys)]


@pytest.mark.parametrize(("queries", "keys"), [(6, 6), (3, 9)])
def test_equals_the_matrix(queries, keys):
    q, k, v = draw(queries, keys)
    scores = (elu(q[0, :, 0]) + 1) @ (elu(k[0, :, 0]) + 1).T / keys
    truth = scores @ v[0, :, 0] / (scores.sum(-1, keepdim=True) + 1e-4)
    torch.testing.assert_close(linfusion(q, k, v)[0][0, :, 0], truth)


def test_every_token_twice_changes_nothing():
    q, k, v = draw(5, 5)
    torch.testing.assert_close(linfusion(q, torch.cat([k, k], 1), torch.cat([v, v], 1))[0], linfusion(q, k, v)[0])


def test_the_epsilon_counts():
    """A large one pulls the outputs of equal values below that value: den / (den + eps)."""
    q = torch.zeros(1, 1, 1, 2, dtype=torch.float64)
    assert linfusion(q, q, torch.ones_like(q), eps=2.0)[0].flatten().tolist() == [0.5, 0.5]
