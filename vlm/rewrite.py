"""rewrite: plans into a new sequence, with kinds, cells, position ids and the way back to what stood there before.

Shapes: B rows, T positions, U positions afterwards, G groups, N tokens of a group, M new tokens in all, C width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gnomon.vlm.layout import Kind, TokenLayout, extents
from gnomon.vlm.plan import Position, ReductionPlan


@dataclass(frozen=True)
class Placed:
    """Groups of a batch of sequences and their plan; `slots` (G,N) are flat positions, -1: not in the sequence."""

    slots: Tensor
    plan: ReductionPlan


@dataclass(frozen=True)
class Rewrite:
    """A batch of sequences in which groups of tokens were replaced.

    layout  (B,U)
    source  (B,U) what stands there: flat old positions, then the new tokens, plan by plan
    origin  (B,U) the flat old position whose place it took
    """

    layout: TokenLayout
    source: Tensor
    origin: Tensor

    def fill(self, old: Tensor, new: Tensor) -> Tensor:
        """(B,T,C) old sequence and (M,C) new tokens to (B,U,C); padding is zero."""
        both = torch.cat([old.flatten(0, 1), new.to(old.dtype)])
        out = both[self.source.flatten()].view(*self.source.shape, -1)
        return out * self.layout.visible[..., None]

    def carry(self, old: Tensor, pad: int | float | bool) -> Tensor:
        """What stood at the origins, (B,T,...) to (B,U,...): labels, masks and whatever else goes along."""
        out = old.flatten(0, 1)[self.origin]
        visible = self.layout.visible.view(*self.origin.shape, *[1] * (out.dim() - 2))
        return torch.where(visible, out, torch.as_tensor(pad, dtype=out.dtype, device=out.device))


def rewrite(layout: TokenLayout, placed: Sequence[Placed], position: Position) -> Rewrite:
    """The sequence in which each group's tokens are the output tokens of its plan.

    Output tokens stand, in the plan's order, where their anchors stood; extra tokens stand before the group's first
    token or after its last one, on the side on which the plan has them.
    """
    batch, length = layout.shape
    stays = layout.visible.flatten().clone()
    for part in placed:
        stays[part.slots[part.slots >= 0]] = False
    own = stays.nonzero()[:, 0]
    # sorting keys: the place taken, and the order among those that take the same one
    most = 1 + max((part.plan.length for part in placed), default=0)
    keys, origins, sources, extras = [own * most], [own], [own], [torch.zeros_like(own, dtype=torch.bool)]
    ids = _axes(layout.position)
    mean = ids.float() if position == "centroid" else ids
    moved = []
    made = batch * length
    for part in placed:
        place, origin, extra, real = _places(part, length * batch)
        number = torch.arange(real.numel(), device=own.device).view(real.shape) + made
        made += real.numel()
        order = torch.arange(part.plan.length, device=own.device)
        keys.append((place * most + order)[real])
        origins.append(origin[real])
        sources.append(number[real])
        extras.append(extra[real])
        if position == "centroid":
            moved.append(_centroid(part, mean.flatten(1))[:, real])
    key, origin, source, extra = map(torch.cat, (keys, origins, sources, extras))
    ids_new = ids.flatten(1)[:, origin]
    if position == "centroid" and moved:
        ids_new = torch.cat([ids_new[:, : len(own)], torch.cat(moved, 1).round().to(ids.dtype)], 1)
    order = key.argsort()
    origin, source, extra, ids_new = origin[order], source[order], extra[order], ids_new[:, order]
    row = origin // length
    counts = torch.bincount(row, minlength=batch)
    width = int(counts.max())
    column = torch.arange(len(row), device=row.device) - (counts.cumsum(0) - counts)[row]
    # padding stays on the side on which it was
    if bool(layout.visible[:, -1].all()):
        column = column + (width - counts)[row]
    spread = _Spread(row, column, (batch, width))
    cell = layout.cell.flatten(0, 1)[origin].masked_fill(extra[:, None], -1)
    # the cells that stay no longer tell how large their grid was
    extent = extents(layout.image.masked_fill(~layout.is_cell, -1), layout.cell, layout.extent)
    extent = extent.flatten(0, 1)[origin].masked_fill(extra[:, None], -1)
    document = layout.document
    new = TokenLayout(
        kind=spread(layout.kind.flatten()[origin], Kind.PAD),
        image=spread(layout.image.flatten()[origin], -1),
        cell=spread(cell, -1),
        position=torch.stack([spread(axis, 0) for axis in ids_new]),
        document=None if document is None else spread(document.flatten()[origin], -1),
        extent=spread(extent, -1),
    )
    if layout.position.dim() == 2:
        new.position = new.position[0]
    if position == "repack":
        new.position = _numbered(new, layout)
    return Rewrite(new, spread(source, 0), spread(origin, 0))


class _Spread:
    """Values of tokens in order, onto rows and columns."""

    def __init__(self, row: Tensor, column: Tensor, shape: tuple[int, int]) -> None:
        self.row, self.column, self.shape = row, column, shape

    def __call__(self, values: Tensor, pad: int) -> Tensor:
        out = values.new_full((*self.shape, *values.shape[1:]), pad)
        out[self.row, self.column] = values
        return out


def _places(part: Placed, none: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(G,T) each: the flat position it is sorted at, the one it stems from, whether it is extra, and is there."""
    slots, plan = part.slots, part.plan
    anchor = plan.anchor
    extra, real = anchor >= slots.shape[1], plan.real
    origin = slots.gather(1, anchor.clamp(max=slots.shape[1] - 1))
    real = real & (extra | (origin >= 0))
    ordinary = real & ~extra
    sorted_slots = torch.where(ordinary, origin, none).sort(1).values
    rank = ordinary.long().cumsum(1) - 1
    place = sorted_slots.gather(1, rank.clamp(min=0))
    there = slots >= 0
    first = torch.where(there, slots, none).amin(1, keepdim=True).expand_as(place)
    last = slots.amax(1, keepdim=True).expand_as(place)
    edge = torch.where(rank < 0, first, last)
    return torch.where(extra, edge, place), torch.where(extra, edge, origin), extra, real


def _centroid(part: Placed, ids: Tensor) -> Tensor:
    """(A,G,T) weighted mean of the ids (A, flat) of what a token is made of; extra tokens take their edge's."""
    plan, count = part.plan, part.slots.shape[1]
    weight = torch.ones_like(plan.index, dtype=torch.float32) if plan.weight is None else plan.weight.float().abs()
    weight = weight * (plan.index < count)
    slots = part.slots.gather(1, plan.index.clamp(max=count - 1).flatten(1)).view(plan.index.shape).clamp(min=0)
    total = weight.sum(2)
    mean = (ids[:, slots] * weight).sum(3) / total.clamp(min=1e-12)
    _, origin, _, _ = _places(part, ids.shape[1])
    return torch.where(total > 0, mean, ids[:, origin.clamp(max=ids.shape[1] - 1)])


def _numbered(new: TokenLayout, old: TokenLayout) -> Tensor:
    """Position ids that rise by one, from the first that each row (or document) had."""
    count = new.visible.long().cumsum(1) - 1
    if new.document is not None:
        begins = torch.ones_like(new.document, dtype=torch.bool)
        begins[:, 1:] = new.document[:, 1:] != new.document[:, :-1]
        count = count - torch.where(begins, count, 0).cummax(1).values
    elif old.position.dim() == 2:
        start = torch.where(old.visible, old.position, torch.iinfo(torch.long).max).amin(1, keepdim=True)
        count = count + start
    count = count.masked_fill(~new.visible, 0)
    return count if old.position.dim() == 2 else count.expand(3, -1, -1)


def _axes(position: Tensor) -> Tensor:
    return position[None] if position.dim() == 2 else position
