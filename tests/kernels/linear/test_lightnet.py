"""LightNet: a softmax over time, in any order."""

import pytest
import torch

from gnomon.kernels.linear.lightnet import lightnet
from gnomon.kernels.mask import CAUSAL

IMPLS = ["reference", "recurrent", "chunk"]


def tensors(length: int = 70):
    generator = torch.Generator().manual_seed(0)
    return (torch.randn(2, length, 3, 4, generator=generator, dtype=torch.float64) for _ in range(3))


@pytest.mark.parametrize("impl", IMPLS)
def test_by_hand(impl):
    """Weights 1, then 1/4 and 3/4, then 1/8, 3/8 and 4/8."""
    k = torch.tensor([1.0, 3.0, 4.0], dtype=torch.float64).log().reshape(1, 3, 1, 1)
    v = torch.tensor([8.0, 16.0, 0.0], dtype=torch.float64).reshape(1, 3, 1, 1)
    o, state = lightnet(torch.ones_like(k), k, v, mask=CAUSAL, impl=impl)
    torch.testing.assert_close(o.flatten(), torch.tensor([8.0, 14.0, 7.0], dtype=torch.float64))
    torch.testing.assert_close(state["z"].exp().item(), 8.0)
    o, _ = lightnet(torch.ones_like(k), k, v, impl=impl)
    torch.testing.assert_close(o.flatten(), torch.full((3,), 7.0, dtype=torch.float64))


@pytest.mark.parametrize("impl", IMPLS)
def test_state_is_a_softmax_and_knows_no_order(impl):
    q, k, v = tensors()
    expected = torch.einsum("bkhd,bkhv->bhdv", k.softmax(1), v)
    order = torch.randperm(70, generator=torch.Generator().manual_seed(1))
    for p in (torch.arange(70), order):
        _, state = lightnet(q, k[:, p], v[:, p], mask=CAUSAL, impl=impl)
        torch.testing.assert_close(state["s"], expected)


@pytest.mark.parametrize("impl", IMPLS)
def test_weights_sum_to_one(impl):
    """Constant values come back; a constant on all log keys changes nothing, so that their gradients sum to zero."""
    q, k, v = tensors()
    k.requires_grad_()
    ones, _ = lightnet(q, k, torch.ones_like(v), mask=CAUSAL, scale=1.0, impl=impl)
    torch.testing.assert_close(ones, q.sum(-1, keepdim=True).expand_as(v))
    o, _ = lightnet(q, k, v, mask=CAUSAL, impl=impl)
    (gradient,) = torch.autograd.grad((o * v.flip(1)).sum(), k)
    torch.testing.assert_close(gradient.sum(1), torch.zeros(2, 3, 4, dtype=torch.float64), rtol=0, atol=1e-10)
    torch.testing.assert_close(lightnet(q, k + 300, v, mask=CAUSAL, impl=impl)[0], o)
