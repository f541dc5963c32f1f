"""BASED: the Taylor weights, computed pair by pair."""

import pytest
import torch

from gnomon.kernels.linear.based import based, taylor
from gnomon.kernels.mask import CAUSAL

IMPLS = ["reference", "recurrent", "chunk"]


def tensors(length: int = 70):
    generator = torch.Generator().manual_seed(0)
    return (torch.randn(2, length, 3, 4, generator=generator, dtype=torch.float64) for _ in range(3))


@pytest.mark.parametrize("impl", IMPLS)
def test_by_hand(impl):
    """t = 2 and then -1 and 0: weights 5 of one key; 1/2 and 1 of two."""
    q, k, v = (torch.tensor(x, dtype=torch.float64).reshape(1, 2, 1, 1) for x in ([2, -1], [1, 0], [3, 6]))
    o, _ = based(q, k, v, mask=CAUSAL, scale=1.0, impl=impl)
    torch.testing.assert_close(o.flatten(), torch.tensor([3.0, 5.0], dtype=torch.float64))
    o, _ = based(q, k, v, scale=1.0, impl=impl)
    torch.testing.assert_close(o.flatten(), torch.tensor([3.5, 5.0], dtype=torch.float64))


def test_features():
    """153 at a width of 16, whose product is the series; it does not change when both sides turn."""
    q, k = torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert taylor(q).shape == (5, 153)
    t = (q * k).sum(-1)
    torch.testing.assert_close((taylor(q) * taylor(k)).sum(-1), 1 + t + t**2 / 2)
    turn = torch.linalg.qr(torch.randn(16, 16, generator=torch.Generator().manual_seed(1), dtype=torch.float64))[0]
    torch.testing.assert_close((taylor(q @ turn) * taylor(k @ turn)).sum(-1), 1 + t + t**2 / 2)


@pytest.mark.parametrize("impl", IMPLS)
def test_small_scores_are_softmax(impl):
    """Where exp is its own series, outputs are those of PyTorch's attention."""
    q, k, v = tensors()
    o, _ = based(q, k, v, mask=CAUSAL, scale=1e-3, impl=impl)
    heads_first = (x.transpose(1, 2) for x in (q, k, v))
    softmax = torch.nn.functional.scaled_dot_product_attention(*heads_first, is_causal=True, scale=1e-3)
    torch.testing.assert_close(o, softmax.transpose(1, 2), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("impl", IMPLS)
def test_queries_of_zero_average(impl):
    _, k, v = tensors()
    o, _ = based(torch.zeros_like(k), 5 * k, v, mask=CAUSAL, impl=impl)
    torch.testing.assert_close(o, v.cumsum(1) / torch.arange(1, 71)[:, None, None])
