"""MoH: all heads on is attention, heads that are off cost nothing, and the two routers by hand."""

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from gnomon.kernels.mask import CAUSAL
from gnomon.kernels.softmax.moh import OP, gate, moh, norm_gate

pytestmark = pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")


def draw(heads: int = 4):
    torch.manual_seed(0)
    return [torch.randn(2, 9, heads, 4, dtype=torch.float64) for _ in range(3)]


@pytest.mark.parametrize("impl", [name for name in OP.impls if name != "group"])
def test_all_heads_with_weight_one_are_attention(impl):
    q, k, v = draw()
    weights, _ = gate(torch.zeros(2, 9, 4, dtype=torch.float64), active=4)
    truth = scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v)), is_causal=True).transpose(1, 2)
    with torch.no_grad():
        torch.testing.assert_close(moh(q, k, v, weights=weights, mask=CAUSAL, impl=impl)[0], truth)


@pytest.mark.parametrize("impl", ["reference", "sdpa", "rows"])
def test_a_head_that_is_off_is_zero_and_gets_no_gradient(impl):
    q, k, v = (x.requires_grad_() for x in draw())
    weights = torch.ones(2, 9, 4, dtype=torch.float64)
    weights[:, :, 2] = 0
    weights[0, :5, 1] = 0
    weights.requires_grad_()
    o, _ = moh(q, k, v, weights=weights, impl=impl)
    off = weights == 0
    assert not bool(o[off].any()) and bool(o[~off].any(-1).all())
    of_q, of_k, of_weights = torch.autograd.grad(o.square().sum(), (q, k, weights))
    assert not bool(of_q[off].any()) and not bool(of_k[:, :, 2].any()) and not bool(of_weights[off].any())


def test_rows_that_are_all_off():
    q, k, v = draw()
    assert not bool(moh(q, k, v, weights=torch.zeros(2, 9, 4, dtype=torch.float64), impl="rows")[0].any())


def test_gate_by_hand():
    """Chances 1/2, 1/4, 1/4 (logits ln 2, 0, 0) with two on: 2/3 and 1/3 of the mass 2; the tie goes to one of them."""
    logits = torch.tensor([[[0.0, 0.6931471805599453, 0.0]]], dtype=torch.float64)
    weights, loss = gate(logits, active=2)
    assert sorted(weights.flatten().tolist()) == pytest.approx([0, 2 / 3, 4 / 3])
    assert weights[0, 0, 1].item() == pytest.approx(4 / 3)
    # mean over heads of chance times load, times the square of their number: (1/2 + 1/4) / 3 * 9
    assert loss.item() == pytest.approx(2.25)


def test_mass_of_shared_and_routed_heads():
    torch.manual_seed(0)
    routed, shared, balance = (torch.randn(2, 9, n, dtype=torch.float64) for n in (6, 3, 2))
    weights, _ = gate(routed, active=2, shared=shared, balance=balance)
    first, second = (2 * balance.softmax(-1)).unbind(-1)
    assert weights.shape == (2, 9, 9)
    torch.testing.assert_close(weights[..., :3].sum(-1), 3 * first)
    torch.testing.assert_close(weights[..., 3:].sum(-1), 2 * second)
    assert bool(((weights[..., 3:] > 0).sum(-1) == 2).all())


def test_even_load_has_the_least_loss():
    even = gate(torch.eye(4).reshape(1, 4, 4) * 3, active=1)[1]
    uneven = gate(torch.eye(4)[[0]].expand(1, 4, 4) * 3, active=1)[1]
    assert even.item() == pytest.approx(1.0) and uneven.item() > 1.5


def test_norm_gate():
    q = torch.zeros(1, 2, 5, 1)
    q[0, :, :, 0] = torch.tensor([[9.0, 1, 3, -5, 2], [0, -4, 3, 1, 2]])
    expected = torch.tensor([[[1.0, 0, 1, 1, 0], [1, 1, 1, 0, 0]]])
    assert torch.equal(norm_gate(q, shared=1, active=2), expected)
    assert torch.equal(norm_gate(7 * q, shared=1, active=2), expected)


def test_refusals():
    q, k, v = draw()
    with pytest.raises(ValueError, match="moh: 5 active heads of 4 routed ones"):
        gate(torch.zeros(1, 1, 4), active=5)
    with pytest.raises(ValueError, match="moh: 4 active heads of 3 routed ones"):
        norm_gate(q, shared=1, active=4)
    with pytest.raises(ValueError, match=r"moh: weights have shape \(2, 9\)"):
        moh(q, k, v, weights=torch.ones(2, 9))
