"""Gated linear attention: by hand, and its two limits."""

import pytest
import torch

from gnomon.kernels.linear.gla import gla
from gnomon.kernels.mask import CAUSAL

IMPLS = ["reference", "recurrent", "chunk"]


def tensors(length: int = 70):
    generator = torch.Generator().manual_seed(0)
    return (torch.randn(2, length, 3, 4, generator=generator, dtype=torch.float64) for _ in range(3))


@pytest.mark.parametrize("impl", IMPLS)
def test_by_hand(impl):
    """Two channels: the first one halves at the second token, the second one is forgotten there."""
    q = torch.tensor([[[1.0, 1.0]], [[1.0, 1.0]]])[None]
    k = torch.tensor([[[4.0, 2.0]], [[1.0, 3.0]]])[None]
    v = torch.tensor([[[1.0]], [[10.0]]])[None]
    g = torch.tensor([[[0.0, 0.0]], [[0.5, 0.0]]]).log()[None]
    o, state = gla(q, k, v, g=torch.cat([torch.zeros_like(g[:, :1]), g[:, 1:]], 1), mask=CAUSAL, scale=1.0, impl=impl)
    torch.testing.assert_close(o.flatten(), torch.tensor([6.0, 42.0]))
    torch.testing.assert_close(state["s"].flatten(), torch.tensor([12.0, 30.0]))


@pytest.mark.parametrize("impl", IMPLS)
def test_open_gates_are_linear_attention(impl):
    q, k, v = tensors()
    o, _ = gla(q, k, v, g=torch.zeros_like(k), mask=CAUSAL, impl=impl)
    expected = torch.einsum("bqhd,bkhd->bhqk", q, k).tril() / 2
    torch.testing.assert_close(o, torch.einsum("bhqk,bkhv->bqhv", expected, v))


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("closed", [-100.0, -torch.inf])
def test_closed_gate_forgets_all(impl, closed):
    """What stands before it does not matter, NaN nowhere."""
    q, k, v = tensors()
    g = torch.full_like(k, -0.1)
    g[:, 66] = closed
    o, _ = gla(q, k, v, g=g, mask=CAUSAL, impl=impl)
    alone, _ = gla(q[:, 66:], k[:, 66:], v[:, 66:], g=g[:, 66:], mask=CAUSAL, impl=impl)
    torch.testing.assert_close(o[:, 66:], alone)


def test_gate_of_another_shape():
    q, k, v = tensors(5)
    with pytest.raises(ValueError, match=r"^gla: g has shape \(2, 5, 3\); give \(batch, tokens, heads, 4\)$"):
        gla(q, k, v, g=k[..., 0], mask=CAUSAL)


@pytest.mark.parametrize("impl", IMPLS)
def test_equal_channels_are_one_decay(impl):
    """Weights exp(g_{j+1} + ... + g_i), as a matrix."""
    q, k, v = tensors()
    g = -torch.rand(2, 70, 3, 1, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    o, _ = gla(q, k, v, g=g.expand_as(k), mask=CAUSAL, impl=impl)
    total = g[..., 0].cumsum(1).transpose(1, 2)
    weights = (total[..., None] - total[..., None, :]).exp().tril()
    expected = torch.einsum("bqhd,bkhd->bhqk", q, k) / 2 * weights
    torch.testing.assert_close(o, torch.einsum("bhqk,bkhv->bqhv", expected, v))
