"""AveragePool: the mean over blocks of neighbouring cells, a control of every table.

Origin:  the usual baseline
Rule:    adaptive_avg_pool2d of the h x w grid to h' x w' with h' w' <= ceil(r N) and h'/w' near h/w
Where:   before the connector or after it; connectors are not linear, so these are two methods
Differs: position ids are the means of the cells' ids
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from gnomon.vlm.plan import ReductionPlan
from gnomon.vlm.reduction.base import Position, ReduceContext, Stage, TokenReducer


class AveragePool(TokenReducer):
    """where: on which side of the connector."""

    stage = Stage.POST_PROJECTOR
    needs = frozenset({"grid"})
    # how many remain depends on the shape of the grid
    adaptive = True
    position = "centroid"

    def __init__(
        self, ratio: float = 0.25, *, where: Literal["before", "after"] = "after", position: Position | None = None
    ) -> None:
        super().__init__(ratio, position=position)
        if where not in ("before", "after"):
            raise ValueError(f"AveragePool: where {where!r} is no side of the connector; use before or after")
        self.stage = Stage.POST_ENCODER if where == "before" else Stage.POST_PROJECTOR

    def plan(self, ctx: ReduceContext) -> ReductionPlan:
        height, width = ctx.grid
        rows, columns = shape(height, width, self.budget(height * width))
        down, down_weight = _bins(height, rows)
        across, across_weight = _bins(width, columns)
        # (rows, columns, sources down, sources across)
        index = (down * width)[:, None, :, None] + across[None, :, None, :]
        weight = down_weight[:, None, :, None] * across_weight[None, :, None, :]
        index, weight = (x.reshape(1, rows * columns, -1).to(ctx.feats.device) for x in (index, weight))
        groups = len(ctx.feats)
        return ReductionPlan(index.expand(groups, -1, -1), weight.expand(groups, -1, -1))


def shape(height: int, width: int, budget: int) -> tuple[int, int]:
    """The larger of the two grids of at most `budget` cells whose rows are nearest to those of a grid like this one."""
    ideal = min(height, budget, max(1.0, budget / width, math.sqrt(budget * height / width)))
    found = [(rows, min(width, budget // rows)) for rows in (math.floor(ideal), math.ceil(ideal))]
    return max(found, key=lambda grid: grid[0] * grid[1])


def _bins(length: int, count: int) -> tuple[Tensor, Tensor]:
    """(count, k) the cells of each bin, and what each counts; bins overlap where the length is no multiple."""
    number = torch.arange(count)
    start, end = number * length // count, -(-(number + 1) * length // count)
    index = start[:, None] + torch.arange(int((end - start).max()))
    inside = index < end[:, None]
    return index.clamp(max=length - 1), inside / (end - start)[:, None]
