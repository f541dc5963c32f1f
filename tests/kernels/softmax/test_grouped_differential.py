"""Grouped differential attention: its limits, the original it grew from, and growth itself."""

import math
from dataclasses import replace

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from gnomon.kernels.mask import CAUSAL
from gnomon.kernels.op import recording
from gnomon.kernels.softmax.exact import exact
from gnomon.kernels.softmax.grouped_differential import OP, grouped_differential, initial, learned


def draw(heads: int, key_heads: int):
    torch.manual_seed(0)
    return [torch.randn(1, 7, n, 4, dtype=torch.float64) for n in (heads, key_heads, key_heads)]


def attention(q, k, v):
    """PyTorch's, causal, heads repeated by hand."""
    k, v = (x.repeat_interleave(q.shape[2] // x.shape[2], 2) for x in (k, v))
    return scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v)), is_causal=True).transpose(1, 2)


def both(v):
    return torch.cat([v[:, :, 0::2], v[:, :, 1::2]], -1)


def test_amount_zero_is_attention_of_the_signal_heads():
    """Ratio 4, 40 query heads, 16 key heads: 32 signal heads over 8 of them."""
    q, k, v = draw(40, 16)
    o, _ = grouped_differential(q, k, v, amount=0.0, ratio=4, mask=CAUSAL)
    signal = [head for head in range(40) if head % 5 != 4]
    torch.testing.assert_close(o, attention(q[:, :, signal], k[:, :, 0::2], both(v)))


def test_ratio_one_is_the_differential_transformer():
    """Its own form: (softmax(q1 k1) - amount softmax(q2 k2)) [v1, v2], one matrix per pair of heads."""
    q, k, v = draw(4, 4)
    o, _ = grouped_differential(q, k, v, amount=0.3)
    for pair in range(2):
        maps = []
        for head in (2 * pair, 2 * pair + 1):
            maps.append((q[0, :, head] @ k[0, :, head].T / 2).softmax(-1))
        values = torch.cat([v[0, :, 2 * pair], v[0, :, 2 * pair + 1]], -1)
        torch.testing.assert_close(o[0, :, pair], (maps[0] - 0.3 * maps[1]) @ values)


@pytest.mark.parametrize("impl, near", [("reference", 0.002), ("auto", 0.05)])
def test_bfloat16_subtracts_in_float32(impl, near):
    """Two maps that are almost the same: what is left of them is rounded once; `auto` rounds each map before, too."""
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, 64, heads, 32) for heads in (8, 4, 4))
    q[:, :, 1::2] = q[:, :, 0::2] + 0.05 * torch.randn(1, 64, 4, 32)
    k[:, :, 1::2] = k[:, :, 0::2]
    narrow = [x.bfloat16() for x in (q, k, v)]
    amount = torch.tensor(0.951)
    o, state = grouped_differential(*narrow, amount=amount, mask=CAUSAL, impl=impl)
    assert o.dtype == state["k"].dtype == torch.bfloat16
    truth, _ = grouped_differential(*(x.double() for x in narrow), amount=amount.double(), mask=CAUSAL)
    assert float((o.double() - truth).norm() / truth.norm()) < near
    if impl == "auto":
        signal, noise = (
            exact(narrow[0][:, :, n::2], narrow[1][:, :, n::2], both(narrow[2]), mask=CAUSAL)[0].float() for n in (0, 1)
        )
        assert torch.equal(o, (signal - amount * noise).bfloat16())


def test_equal_maps_leave_the_rest():
    q, k, v = draw(3, 2)
    q, k = q[:, :, :1].expand_as(q), k[:, :, :1].expand_as(k)
    o, _ = grouped_differential(q, k, v, amount=0.3, ratio=2, mask=CAUSAL)
    torch.testing.assert_close(o, 0.7 * attention(q[:, :, :2], k[:, :, :1], both(v)))


def test_growth_by_copies_of_signal_heads_only_copies_outputs():
    q, k, v = draw(4, 2)
    small, _ = grouped_differential(q, k, v, amount=0.3, mask=CAUSAL)
    wide, _ = grouped_differential(q[:, :, [0, 0, 0, 1, 2, 2, 2, 3]], k, v, amount=0.3, ratio=3, mask=CAUSAL)
    torch.testing.assert_close(wide, small.repeat_interleave(3, 2))


def test_amounts():
    assert initial(0) == pytest.approx(0.2) and initial(100) == pytest.approx(0.8)
    zero, one = torch.zeros(3), torch.ones(3)
    assert learned(zero, one, zero, one, layer=2).item() == pytest.approx(0.8 - 0.6 * math.exp(-0.6))
    assert learned(one, one, zero, one, layer=0).item() == pytest.approx(math.exp(3) - 1 + 0.2)


def test_refusals():
    with pytest.raises(ValueError, match="grouped_differential: 5 query heads at ratio 2; give"):
        grouped_differential(*draw(5, 2), amount=0.5, ratio=2)
    with pytest.raises(ValueError, match=r"grouped_differential: amount has shape \(2,\); give one number"):
        grouped_differential(*draw(2, 2), amount=torch.rand(2))
    with pytest.raises(ValueError, match="grouped_differential: k has 4 heads; give twice a divisor of the 1 noise"):
        grouped_differential(*draw(4, 4), amount=0.5, ratio=3)


def test_two_attentions_cost_what_the_record_says():
    """Together, at the sizes of the public call."""
    q, k, v = (torch.randn(1, 32, 4, 8) for _ in range(3))
    with recording() as calls:
        grouped_differential(q, k, v, amount=0.5, mask=CAUSAL)
    shape = replace(calls[0].shape, heads=4, key_heads=4, value_width=8)
    assert [call.op for call in calls] == ["grouped_differential"] * 2
    assert sum(call.cost(call.shape).operations for call in calls) == OP.cost(shape).operations
