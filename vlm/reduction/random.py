"""Random: a uniform choice of the tokens, the control of every table.

Origin:  the usual baseline
Rule:    keep ceil(r N) of the N tokens of each image, drawn without replacement, in raster order
Where:   after the connector
Differs: drawn from (seed, sample, image), so neither batch nor order of the samples changes the choice
"""

from __future__ import annotations

import hashlib

import torch

from gnomon.vlm.plan import ReductionPlan
from gnomon.vlm.reduction.base import Position, ReduceContext, Stage, TokenReducer


class Random(TokenReducer):
    stage = Stage.POST_PROJECTOR

    def __init__(self, ratio: float = 1.0, *, seed: int = 0, position: Position | None = None) -> None:
        super().__init__(ratio, position=position)
        self.seed = seed

    def plan(self, ctx: ReduceContext) -> ReductionPlan:
        length = ctx.feats.shape[1]
        drawn = [_permutation(f"{self.seed}:{name}", length)[: self.budget(length)] for name in ctx.names]
        return ReductionPlan.keep(torch.stack(drawn).sort(1).values.to(ctx.feats.device))


def _permutation(key: str, length: int) -> torch.Tensor:
    seed = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") >> 1
    return torch.randperm(length, generator=torch.Generator().manual_seed(seed))
