"""What an operator that takes any mask makes of masks with structure: rules, tensors, and rules on tokens of one's own.

That it hides what the mask hides, and nothing else, is held against the operator without it, and so against no code
that could share a mistake; its implementations are held to its reference.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from attending import Call, Inputs, calls, close
from torch import Tensor

from gnomon.kernels.mask import CAUSAL, EVERYTHING, Expr, Mask, bind, by_head
from gnomon.kernels.masks.atoms import band, equal, part
from gnomon.kernels.masks.tokens import Tokens

# FlexAttention says that it is slow when it is not compiled; here it is only compared
pytestmark = pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")

Made = tuple[Mask, Tensor]
"""A mask, and what it lets through beside the pattern of the call, (R,h,Q,K)."""


def by_heads(inputs: Inputs) -> Made:
    """Heads that are no half of all, each with an equivalence."""
    return _rule(inputs, by_head({(0, 2): part("p", 4), (3,): part("p", 2)}, part("p", 3, 1)))


def near(inputs: Inputs) -> Made:
    return _rule(inputs, band("p", 3) & ~band("p", 1))


def tensor(inputs: Inputs) -> Made:
    queries, keys = inputs.qkv["q"].shape[1], inputs.qkv["k"].shape[1]
    given = torch.rand(2, 4, queries, keys, generator=torch.Generator().manual_seed(3)) < 0.6
    return given & bind(inputs.call.mask, queries, keys).dense(), given


def on_tokens(inputs: Inputs) -> Made:
    """Tokens of rows that differ, in a field that no operator knows."""
    queries, keys = inputs.qkv["q"].shape[1], inputs.qkv["k"].shape[1]
    grid = inputs.example.options.get("grid")
    tokens = Tokens.line(keys) if grid is None else Tokens.grid(*grid)
    place = torch.arange(keys) % math.prod((grid or (keys,))[-2:])
    tokens = tokens.having(place=place, topic=torch.arange(2 * keys).reshape(2, keys) * 7 % 3)
    rule = equal("topic") & (CAUSAL if inputs.call.causal else EVERYTHING)
    bound = rule.on(tokens) if queries == keys else rule.on(tokens.take(slice(-queries, None)), tokens)
    return bound, bound.dense()


def _rule(inputs: Inputs, rule: Expr) -> Made:
    queries, keys = inputs.qkv["q"].shape[1], inputs.qkv["k"].shape[1]
    return (CAUSAL & rule if inputs.call.causal else rule), bind(rule, queries, keys).dense(4)


def shown(inputs: Inputs, mask: Mask) -> Tensor:
    """(B,H,Q,K) bool: the values that reach each query of each head."""
    v = inputs.qkv["v"].detach().requires_grad_()
    o, _ = inputs.run({"v": v}, impl="reference", mask=mask)
    rows = [torch.autograd.grad(o[:, i].sum(), v, retain_graph=True)[0] for i in range(o.shape[1])]
    return torch.stack(rows, 1).ne(0).any(-1).permute(0, 3, 1, 2)


def refused(call: Call, told: ValueError) -> bool:
    return str(told).startswith((f"{call.member.op.name}: ", "mask: ")) and "\n" not in str(told)


@calls()
def test_what_is_no_mask_is_refused(call: Call):
    for mask in ("causal", 3, [True]):
        with pytest.raises(ValueError) as told:
            call.inputs(call.sizes()).run(mask=mask)
        assert refused(call, told.value)


@pytest.mark.parametrize("make", [by_heads, near, tensor, on_tokens])
@calls(needs=lambda member: member.op.masks)
def test_masks_with_structure(call: Call, make: Callable[[Inputs], Made]):
    """Or refused in one line, by all implementations: none is replaced by another mask."""
    inputs = call.inputs(call.sizes())
    mask, allowed = make(inputs)
    try:
        o, _ = inputs.run(impl="reference", mask=mask)
    except ValueError as told:
        assert refused(call, told)
        o = None
    # where outputs have other heads than values, heads of a mask are not those of the values
    if o is not None and (allowed.shape[1] == 1 or o.shape[2] == allowed.shape[1]):
        assert torch.equal(shown(inputs, mask), shown(inputs, call.mask) & allowed)
    for impl in ("auto", *call.member.op.impls):
        # FlexAttention is slow to begin, and its view of masks is tested in tests/kernels/masks
        if impl == "flex" and (make is not by_heads or call.label):
            continue
        try:
            theirs, _ = inputs.run(impl=impl, mask=mask)
        except ValueError as told:
            assert refused(call, told) and (o is None or (impl != "auto" and "cannot run" in str(told)))
        else:
            assert o is not None
            close(theirs, o)
