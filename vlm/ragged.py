"""Images of one size that have kept different numbers of tokens: apart by number, without padding, and back.

Shapes: I images, N tokens of the longest, T of one group, g sources per token, C width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from gnomon.vlm.layout import Features
from gnomon.vlm.plan import ReductionPlan

_ALIGNED = ("tokens", "keys", "saliency", "wide_keys", "wide_saliency", "xyz", "confidence")
_PER_IMAGE = ("cls", "camera")


def by_count(features: Features) -> list[tuple[list[int], Features]]:
    """Numbers of the images that have equally many tokens, and their features, which are not padded."""
    members: dict[int, list[int]] = {}
    for i, count in enumerate(features.counts):
        members.setdefault(count, []).append(i)
    if len(members) == 1 and features.tokens.shape[1] in members:
        return [(members[features.tokens.shape[1]], features)]
    return [(chosen, _select(features, chosen, count)) for count, chosen in members.items()]


def together(parts: Sequence[tuple[list[int], Features]]) -> Features:
    """Features of groups of images, padded, in the images' own order."""
    if len(parts) == 1:
        return parts[0][1]
    groups = [features for _, features in parts]
    order = torch.tensor([i for members, _ in parts for i in members], device=groups[0].tokens.device).argsort()
    joined = {name: _join([getattr(g, name) for g in groups], 1, order) for name in _ALIGNED}
    joined |= {name: _join([getattr(g, name) for g in groups], 0, order) for name in _PER_IMAGE}
    plans = [g.plan or ReductionPlan.identity(*g.tokens.shape[:2], g.tokens.device) for g in groups]
    weights = [torch.ones_like(p.index, dtype=torch.float32) if p.weight is None else p.weight for p in plans]
    plan = ReductionPlan(
        index=_join([p.index for p in plans], 2, order),
        weight=_join(weights, 2, order),
        extra=_join([p.extra for p in plans], 1, order),
        count=torch.cat([p.counts for p in plans])[order],
    )
    return replace(groups[0], **joined, plan=plan, grid=[g.grid[0] for g in groups for _ in g.grid])


def interleave(groups: Sequence[Features], members: Sequence[list[int]]) -> Features:
    """Whole features of groups of images of one size, padded, in the images' own order."""
    if len(groups) == 1:
        return groups[0]
    most, first = max(g.tokens.shape[1] for g in groups), groups[0].tokens
    order = torch.tensor([i for group in members for i in group], device=first.device).argsort()
    tokens = torch.cat([F.pad(g.tokens, (0, 0, 0, most - g.tokens.shape[1])) for g in groups])[order]
    grids = [grid for g in groups for grid in g.grid]
    return replace(groups[0], tokens=tokens, grid=[grids[i] for i in order.tolist()], cls=None)


def _select(features: Features, members: list[int], count: int) -> Features:
    chosen = features.at(torch.tensor(members, device=features.tokens.device))
    shorter = {name: value[:, :count] for name in _ALIGNED if (value := getattr(chosen, name)) is not None}
    plan = chosen.plan
    if plan is not None:
        plan = replace(
            plan,
            index=plan.index[:, :count],
            weight=None if plan.weight is None else plan.weight[:, :count],
            size=None if plan.size is None else plan.size[:, :count],
            count=None,
        )
    return replace(chosen, **shorter, plan=plan)


def _join(values: list[Tensor | None], padded: int, order: Tensor) -> Tensor | None:
    """Tensors one below the other, with zeros after the ends of the first `padded` dimensions behind the images'."""
    if any(value is None for value in values):
        return None
    most = [max(value.shape[1 + axis] for value in values) for axis in range(padded)]
    full = []
    for value in values:
        pads = [m - value.shape[1 + axis] for axis, m in enumerate(most)] + [0] * (value.dim() - 1 - padded)
        full.append(F.pad(value, [side for pad in reversed(pads) for side in (0, pad)]))
    return torch.cat(full)[order]
