"""How many pairs a sparse operator sees, as a share of those that dense attention of the same causality sees."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch

from gnomon.eval.bench.kernel_calls import Call, is_pattern
from gnomon.kernels.mask import CAUSAL, EVERYTHING
from gnomon.kernels.masks.blocks import visible_pairs


def density(call: Call) -> float | None:
    """Of a call that has run; None where the operator is no softmax over some of the pairs."""
    member = call.member
    if member.op.name in _CHOSEN:
        options = {name: p.default for name, p in inspect.signature(member.function).parameters.items()}
        return _CHOSEN[member.op.name](call.qkv[1].shape[1], {**options, **call.options})
    if not is_pattern(member):
        return None
    assert call.chosen is not None
    mask = call.chosen.mask
    dense = (CAUSAL if call.causal else EVERYTHING).on(mask.q, None if mask.k is mask.q else mask.k)
    return visible_pairs(mask, call.chosen.shape.heads) / visible_pairs(dense)


def _infllm_v2(length: int, given: Mapping[str, Any]) -> float:
    """Which blocks a token chooses depends on the data, and how many does not: its own is always among them."""
    if length <= given["dense_length"]:
        return 1.0
    place, block = torch.arange(length, dtype=torch.float64), given["block"]
    others = place.div(block, rounding_mode="floor").clamp(max=given["top"] - 1)
    return float((others * block + place % block + 1).sum() / (place + 1).sum())


def _sla(length: int, given: Mapping[str, Any]) -> float:
    """Of the softmax; what the linear branch sums up is not counted."""
    blocks = -(-length // given["block_k"])
    return max(int(given["critical"] * blocks), 1) / blocks


# Operators that choose by the data: their masks do not know.
_CHOSEN: Mapping[str, Callable[[int, Mapping[str, Any]], float]] = {"infllm_v2": _infllm_v2, "sla": _sla}
