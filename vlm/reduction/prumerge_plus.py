"""PruMerge+: PruMerge with tokens from all over the image beside the outliers.

Paper:   LLaVA-PruMerge: Adaptive Token Reduction for Efficient Large Multimodal Models. arXiv:2403.15388
Rule:    k outliers as in PruMerge, and of every floor(floor(N/k)/3)-th token those that are not among them; both take
         in the 32 tokens of nearest key, and one more token is the sum of what is left out
Where:   after the encoder
Differs: the step is at least 1 and grows until no more than ratio N are kept (the last cell is never one of a step's,
         as in the original); without `adaptive` half of the ratio's tokens are the highest and half lie evenly among
         the others, without repeats; a and keys are of the block that the features come from; without a class token
         see taps.py
"""

from __future__ import annotations

import torch
from torch import Tensor

from gnomon.vlm.plan import ReductionPlan
from gnomon.vlm.reduction.base import Position, ReduceContext, Stage, TokenReducer, absorb, outliers


class PruMergePlus(TokenReducer):
    """adaptive: as many as the outliers ask for (the paper's way), at most ratio N. neighbours: merged into each."""

    stage = Stage.POST_ENCODER
    needs = frozenset({"wide_saliency", "wide_keys"})
    ordered = False

    def __init__(
        self, ratio: float = 1.0, *, adaptive: bool = False, neighbours: int = 32, position: Position | None = None
    ) -> None:
        super().__init__(ratio, position=position)
        if neighbours < 0:
            raise ValueError(f"PruMergePlus: neighbours {neighbours} is below 0; use 0 for none")
        self.adaptive, self.neighbours = adaptive, neighbours

    def idle(self) -> bool:
        return self.ratio == 1 and not self.adaptive

    def plan(self, ctx: ReduceContext) -> ReductionPlan:
        scores = ctx.wide_saliency
        groups, length = scores.shape
        total = self.budget(length)
        if total == length and not self.adaptive:
            return ReductionPlan.identity(groups, length, scores.device)
        most = max(1, total - 1)
        rank = scores.argsort(dim=1, descending=True, stable=True).argsort(1)
        if self.adaptive:
            high = outliers(scores).sum(1).clamp(1, most)[:, None]
            spread = _stepped(rank >= high, high, most)
        else:
            high = torch.full((groups, 1), total // 2 or 1, device=scores.device)
            spread = _evenly(rank >= high, most - (total // 2 or 1))
        # the highest by score, then the spread ones in raster order, then the rest by score
        cell = torch.arange(length, device=scores.device)
        order = torch.where(spread, length + cell, torch.where(rank < high, rank, 2 * length + rank)).argsort(1)
        count = high[:, 0] + spread.sum(1)
        return absorb(scores, ctx.wide_keys, order, count, neighbours=self.neighbours, spare=total > 1)


def _stepped(others: Tensor, high: Tensor, most: int) -> Tensor:
    """(G,N) bool: of `others` (G,N) those at every step-th cell, no more than `most` less `high` (G,1)."""
    length = others.shape[1]
    room = most - high
    step = (length // high // 3).clamp(min=1)
    step = torch.maximum(step, -((1 - length) // room.clamp(min=1)))
    cell = torch.arange(length, device=others.device)
    return others & (cell % step == 0) & (cell < length - 1) & (room > 0)


def _evenly(others: Tensor, count: int) -> Tensor:
    """(G,N) bool: `count` of those in `others` (G,N), as many in each group, at equal distances in raster order."""
    size = others[0].sum()
    place = ((torch.arange(count, device=others.device) + 0.5) * size / max(count, 1)).long()
    # raster order among the others, then everything else
    order = torch.argsort(~others, dim=1, stable=True)
    return torch.zeros_like(others).scatter(1, order[:, place], True)
