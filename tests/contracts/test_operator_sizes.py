"""Operators where blocks are whole and heads are shared by eight, and in bfloat16, held to what torch loses there."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from attending import Call, calls, close, with_gradients
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from gnomon.kernels.mask import CAUSAL, EVERYTHING
from gnomon.kernels.masks.atoms import q_is
from gnomon.kernels.masks.tokens import Tokens

# FlexAttention says that it is slow when it is not compiled; here it is only compared
pytestmark = pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")

FITTING = ("exact", "affine_scaled", "moh", "clear", "power", "s2")
"""Whose examples are valid at any size, and whose masks may stand on tokens of the caller's."""


@calls(needs=lambda member: member.op.name in FITTING)
def test_queries_that_see_nothing_among_128(call: Call):
    """They are zero, the others are as without them; eight heads of queries share one of keys."""
    keys = 128 if call.pattern[1] == "S" else 160
    grid = (8, 16) if call.member.op.grid else (keys,)
    sizes = replace(call.sizes(batch=1), queries=128, keys=keys, heads=8, key_heads=1, grid=grid)
    inputs = call.inputs(sizes)
    blind = torch.arange(128) % 5 == 2
    item = torch.zeros(keys, dtype=torch.long)
    item[-128:] = blind.long()
    tokens = (Tokens.grid(*grid) if call.member.op.grid else Tokens.line(keys)).having(topic=item)
    rule = (CAUSAL if call.causal else EVERYTHING) & ~q_is("topic", 1)
    bound = rule.on(tokens) if keys == 128 else rule.on(tokens.take(slice(-128, None)), tokens)
    whole, _ = inputs.run(impl="reference")
    o, _, gradients = with_gradients(inputs, impl="reference", mask=bound)
    assert not bool(o[:, blind].any()) and not bool(gradients["q"][:, blind].any())
    close(o[:, ~blind], whole[:, ~blind])
    for impl in call.member.op.impls:
        # FlexAttention is slow to begin, and its view of masks is tested in tests/kernels/masks
        if impl not in ("reference", "flex") and inputs.able(impl, grad=True, mask=bound):
            theirs = with_gradients(inputs, impl=impl, mask=bound)
            close(theirs[0], o)
            close(theirs[2], gradients)
        elif impl != "flex" and inputs.able(impl, grad=False, mask=bound):
            close(inputs.run(impl=impl, mask=bound)[0], o)


def loss(found: Tensor, truth: Tensor) -> float:
    return float((found.double() - truth).norm() / truth.norm())


# a difference of two attentions has the errors of both
@calls("NS CS", needs=lambda member: member.op.name != "grouped_differential")
def test_bfloat16_loses_at_most_twice_what_torch_loses(call: Call):
    """On the same queries, keys and values, in torch's dense attention; the truth is float64."""
    sizes = call.sizes(dtype=torch.bfloat16)
    q, k, v = (x.transpose(1, 2) for x in call.sizes(dtype=torch.bfloat16).qkv())
    dense = scaled_dot_product_attention(q, k, v, is_causal=call.causal)
    exact = scaled_dot_product_attention(q.double(), k.double(), v.double(), is_causal=call.causal)
    inputs = call.inputs(sizes)
    wide = {name: x.double() if x.is_floating_point() else x for name, x in inputs.tensors().items()}
    truth, _ = inputs.run(wide, impl="reference")
    for impl in call.member.op.impls:
        if impl != "flex" and inputs.able(impl, grad=False):
            assert loss(inputs.run(impl=impl)[0], truth) <= 2 * loss(dense, exact), impl
