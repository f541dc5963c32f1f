"""PruMerge: keep the outliers of the class attention and merge what is left out into them.

Paper:   LLaVA-PruMerge: Adaptive Token Reduction for Efficient Large Multimodal Models. arXiv:2403.15388
Rule:    a = softmax(q_CLS K^T / sqrt(C)), all heads as one; the tokens with a > Q3 + 1.5 (Q3 - Q1) stay, highest first;
         x_i += sum of a_j x_j over the 32 tokens of nearest key (cosine); one more token is the sum of a_j x_j left out
Where:   after the encoder
Differs: a and keys are of the block that the features come from, not of the one behind it; without `adaptive` the ratio
         says how many there are, the last one included; at least one stays; without a class token see taps.py
"""

from __future__ import annotations

import torch

from gnomon.vlm.plan import ReductionPlan
from gnomon.vlm.reduction.base import Position, ReduceContext, Stage, TokenReducer, absorb, outliers


class PruMerge(TokenReducer):
    """adaptive: as many as are outliers (the paper's way), at most ratio N. neighbours: merged into each."""

    stage = Stage.POST_ENCODER
    needs = frozenset({"wide_saliency", "wide_keys"})
    ordered = False

    def __init__(
        self, ratio: float = 1.0, *, adaptive: bool = False, neighbours: int = 32, position: Position | None = None
    ) -> None:
        super().__init__(ratio, position=position)
        if neighbours < 0:
            raise ValueError(f"PruMerge: neighbours {neighbours} is below 0; use 0 for none")
        self.adaptive, self.neighbours = adaptive, neighbours

    def idle(self) -> bool:
        return self.ratio == 1 and not self.adaptive

    def plan(self, ctx: ReduceContext) -> ReductionPlan:
        scores = ctx.wide_saliency
        groups, length = scores.shape
        total = self.budget(length)
        if total == length and not self.adaptive:
            return ReductionPlan.identity(groups, length, scores.device)
        # one place is for the sum of what is left out, unless there is but one
        most = max(1, total - 1)
        count = torch.full((groups,), most, device=scores.device)
        if self.adaptive:
            count = outliers(scores).sum(1).clamp(1, most)
        order = scores.argsort(dim=1, descending=True, stable=True)
        return absorb(scores, ctx.wide_keys, order, count, neighbours=self.neighbours, spare=total > 1)
