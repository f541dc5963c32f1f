"""VisPruner: half of the tokens by attention, the other half by leaving out duplicates.

Paper:   Beyond Text-Visual Attention: Exploiting Visual Cues for Effective Token Pruning in VLMs. arXiv:2412.01818
Rule:    int(q T) tokens of highest class attention stay; of the others, by falling attention, tokens at even places are
         compared with those at odd places and the min(8, R - target) nearest to one leave, again and again
Where:   after the encoder
Differs: at most as many leave in one turn as stand at even places, where the original fails; 8 becomes 8 k for images
         of k times 576 tokens, or choosing would take long; scores without a class token are those of taps.py
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from gnomon.vlm.plan import ReductionPlan
from gnomon.vlm.reduction.base import Position, ReduceContext, Stage, TokenReducer

_USUAL = 576
"""Tokens of an image in the paper. Of one with k times as many, k times as many leave in a turn."""


class VisPruner(TokenReducer):
    """important: q, the share of the tokens kept that attention chooses. turn: how many leave at a time."""

    stage = Stage.POST_ENCODER
    needs = frozenset({"saliency"})

    def __init__(
        self, ratio: float = 1.0, *, important: float = 0.5, turn: int = 8, position: Position | None = None
    ) -> None:
        super().__init__(ratio, position=position)
        if not 0 <= important <= 1:
            raise ValueError(f"VisPruner: important {important} is not in [0, 1]; give its share of the tokens kept")
        if turn < 1:
            raise ValueError(f"VisPruner: turn {turn} is below 1, so that no token would ever leave; use 8")
        self.important, self.turn = important, turn

    def plan(self, ctx: ReduceContext) -> ReductionPlan:
        total = self.budget(ctx.feats.shape[1])
        important = int(total * self.important)
        order = ctx.saliency.argsort(dim=1, descending=True, stable=True)
        rest = self._distinct(order[:, important:], ctx.feats.detach(), total - important)
        return ReductionPlan.keep(torch.cat([order[:, :important], rest], 1).sort(1).values)

    def _distinct(self, rest: Tensor, feats: Tensor, target: int) -> Tensor:
        """(G,R) token numbers to (G,target) of them."""
        if target == 0:
            return rest[:, :0]
        unit = F.normalize(feats.float(), dim=-1)
        alike = unit @ unit.mT
        group = torch.arange(len(rest), device=rest.device)[:, None]
        turn = self.turn * max(1, feats.shape[1] // _USUAL)
        while rest.shape[1] > target:
            even, odd = rest[:, ::2], rest[:, 1::2]
            leave = min(turn, rest.shape[1] - target, even.shape[1])
            nearest = alike[group, even].gather(2, odd[:, None].expand(-1, even.shape[1], -1)).amax(2)
            stay = nearest.argsort(dim=1, descending=True, stable=True)[:, leave:]
            rest = torch.cat([even.gather(1, stay), odd], 1)
        return rest
