"""DivPrune: the tokens that are least alike.

Paper:   DivPrune: Diversity-based Visual Token Pruning for Large Multimodal Models. arXiv:2503.02175
Rule:    D_ij = 1 - cos(x_i, x_j); first the token farthest from its nearest other; then, again and again, the one whose
         nearest chosen token is farthest
Where:   after the connector
Differs: a token is never chosen twice (the original may, where features are equal); ceil(r N) instead of round(r N)
"""

from __future__ import annotations

import torch
from torch.nn import functional as F

from gnomon.vlm.plan import ReductionPlan
from gnomon.vlm.reduction.base import Position, ReduceContext, Stage, TokenReducer, farthest


class DivPrune(TokenReducer):
    stage = Stage.POST_PROJECTOR

    def __init__(self, ratio: float = 0.098, *, position: Position | None = None) -> None:
        super().__init__(ratio, position=position)

    @torch.no_grad()
    def plan(self, ctx: ReduceContext) -> ReductionPlan:
        groups, length, _ = ctx.feats.shape
        budget = self.budget(length)
        if budget == length:
            return ReductionPlan.identity(groups, length, ctx.feats.device)
        unit = F.normalize(ctx.feats.float(), dim=2)
        distance = 1 - unit @ unit.transpose(1, 2)
        # the nearest other is not the token itself
        distance.diagonal(dim1=1, dim2=2).fill_(torch.inf)
        first = distance.amin(2).argmax(1, keepdim=True)
        return ReductionPlan.keep(farthest(distance, first, budget).sort(1).values)
