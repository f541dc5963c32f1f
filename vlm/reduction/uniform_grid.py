"""UniformGrid: every s-th row and column, a control of every table.

Origin:  the usual baseline
Rule:    where ceil(h/s) ceil(w/s) = T for some s, the cells in every s-th row and column; else T evenly spaced ones in
         raster order, floor((i + 1/2) N / T)
Where:   after the connector
Differs: T = ceil(r N), so 0.25 is every second row and column; tokens of a thinned-out image are spaced evenly
"""

from __future__ import annotations

import torch

from gnomon.vlm.plan import ReductionPlan
from gnomon.vlm.reduction.base import Position, ReduceContext, Stage, TokenReducer


class UniformGrid(TokenReducer):
    stage = Stage.POST_PROJECTOR

    def __init__(self, ratio: float = 0.25, *, position: Position | None = None) -> None:
        super().__init__(ratio, position=position)

    def plan(self, ctx: ReduceContext) -> ReductionPlan:
        groups, length, _ = ctx.feats.shape
        budget = self.budget(length)
        index = _strided(*ctx.grid, budget) if ctx.grid else None
        if index is None:
            # floor((i + 1/2) N / T) in whole numbers
            index = (2 * torch.arange(budget) + 1) * length // (2 * budget)
        return ReductionPlan.keep(index.to(ctx.feats.device).expand(groups, -1))


def _strided(height: int, width: int, budget: int) -> torch.Tensor | None:
    for stride in range(1, max(height, width) + 1):
        if -(-height // stride) * -(-width // stride) == budget:
            return torch.arange(height * width).view(height, width)[::stride, ::stride].flatten()
    return None
