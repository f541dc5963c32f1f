"""HGRN-2: what the tie of gate and key promises, and values worked out by hand."""

import math

import pytest
import torch

from gnomon.kernels.linear.hgrn2 import gate, hgrn2, lower_bounds
from gnomon.kernels.mask import CAUSAL

IMPLS = ["reference", "recurrent", "chunk"]


@pytest.mark.parametrize("impl", IMPLS)
def test_by_hand(impl):
    """Gates of 3/4 and 1/4; with a lower bound of 1/2, of 7/8 and 5/8."""
    k = torch.tensor([math.log(3), -math.log(3)], dtype=torch.float64).reshape(1, 2, 1, 1)
    one, v = torch.ones_like(k), torch.tensor([16.0, 32.0], dtype=torch.float64).reshape(1, 2, 1, 1)
    o, _ = hgrn2(one, k, v, mask=CAUSAL, impl=impl)
    torch.testing.assert_close(o.flatten(), torch.tensor([4.0, 25.0], dtype=torch.float64))
    o, _ = hgrn2(one, k, v, lower=torch.tensor([[0.5]]), mask=CAUSAL, impl=impl)
    torch.testing.assert_close(o.flatten(), torch.tensor([2.0, 13.25], dtype=torch.float64))


@pytest.mark.parametrize("impl", IMPLS)
def test_state_of_constant_values_stays(impl):
    """Written is exactly what was forgotten: with v = c for all tokens and c stored, c stays stored."""
    torch.manual_seed(0)
    q, k = (3 * torch.randn(2, 100, 3, 4, dtype=torch.float64) for _ in range(2))
    c = torch.randn(5, dtype=torch.float64)
    stored = c.expand(2, 3, 4, 5)
    o, state = hgrn2(q, k, c.expand(2, 100, 3, 5), mask=CAUSAL, state={"s": stored}, scale=1.0, impl=impl)
    torch.testing.assert_close(state["s"], stored, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(o, q.sum(-1, keepdim=True) * c)


def test_small_keys_are_exact():
    """1 - sigmoid(40) is 4e-18: float32 knows it although 1 - f would be zero."""
    k = torch.full((1, 1, 1, 1), 40.0)
    _, state = hgrn2(torch.ones_like(k), k, torch.ones_like(k), mask=CAUSAL, impl="chunk")
    torch.testing.assert_close(state["s"].item(), math.exp(-40), rtol=1e-5, atol=0)


def test_lower_bounds_rise():
    bounds = lower_bounds(torch.zeros(4, 2, 3))
    assert torch.equal(bounds[:, 0, 0], torch.tensor([0.0, 0.25, 0.5, 0.75]))
    bounds = lower_bounds(torch.randn(6, 5, generator=torch.Generator().manual_seed(0)))
    assert bool((bounds.diff(dim=0) > 0).all()) and bool((bounds[0] == 0).all()) and bool((bounds < 1).all())


@pytest.mark.parametrize("impl", IMPLS)
def test_gradient_of_a_bound_of_zero(impl):
    """Finite differences: the first layer of `lower_bounds` stands there."""
    q, k, v = torch.randn(3, 1, 6, 2, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    lower = torch.zeros(2, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda lower: hgrn2(q, k, v, lower=lower, mask=CAUSAL, impl=impl)[0], lower)


def test_what_a_bound_leaves_of_small_keys_is_exact():
    """Of a state a token of 1 - f = 0.75 * 3e-7 takes that, and not what float32 makes of f."""
    k, lower = torch.full((1, 1, 1, 1), 15.0), torch.tensor([[0.25]])
    log_f, key = gate(k, lower)
    torch.testing.assert_close(log_f.item(), math.log1p(-0.75 / (1 + math.exp(15))), rtol=1e-5, atol=0)
    torch.testing.assert_close(key.item(), 0.75 / (1 + math.exp(15)), rtol=1e-5, atol=0)


def test_bound_of_zero_has_a_finite_gradient():
    lower = torch.zeros(1, 2, requires_grad=True)
    x = torch.randn(1, 5, 1, 2, generator=torch.Generator().manual_seed(0))
    o, _ = hgrn2(x, -200 * x.abs(), x, lower=lower, mask=CAUSAL)
    o.sum().backward()
    assert bool(o.isfinite().all()) and bool(lower.grad.isfinite().all())


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("logit", [-1e4, -30.0, 0.0, 30.0])
def test_no_more_is_forgotten_than_the_bound_allows(impl, logit):
    """What is left of a state of ones, with values of zero, is the forget gate."""
    lower = lower_bounds(torch.randn(4, 3, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64))
    for bound in lower:
        k = torch.full((1, 1, 3, 5), logit, dtype=torch.float64)
        ones = {"s": torch.ones(1, 3, 5, 1, dtype=torch.float64)}
        _, state = hgrn2(k, k, torch.zeros(1, 1, 3, 1).double(), lower=bound, mask=CAUSAL, state=ones, impl=impl)
        left = state["s"][0, :, :, 0]
        assert bool((left >= bound - 1e-15).all()) and bool((left <= 1).all())
