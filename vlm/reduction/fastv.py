"""FastV: drop the visual tokens that the last query ignores after layer K.

Paper:   An Image is Worth 1/2 Tokens After Layer 2: Plug-and-Play Inference Acceleration for Large Vision-Language Models. arXiv:2403.06764
Rule:    s_j = mean_h A[h, last, j] at layer K-1; keep the ceil(r N) largest s_j, in raster order
Where:   prefill, before decoder layer K
Differs: scores come from one query row (no T x T matrix)
"""

from __future__ import annotations

from gnomon.vlm.plan import ReductionPlan
from gnomon.vlm.reduction.base import Position, ReduceContext, Stage, TokenReducer, top


class FastV(TokenReducer):
    """layer: K. The released code takes 2 in the paper and 3 in its demo."""

    stage = Stage.LLM_LAYER
    needs = frozenset({"rows"})
    position = "keep"

    def __init__(self, ratio: float = 0.5, *, layer: int = 2, position: Position | None = None) -> None:
        super().__init__(ratio, position=position)
        if layer < 1:
            raise ValueError(f"FastV: layer {layer} has no layer before it to take scores from; use 1 or more")
        self.layers = (layer,)

    def plan(self, ctx: ReduceContext) -> ReductionPlan:
        return ReductionPlan.keep(top(ctx.rows[:, 0], self.budget(ctx.feats.shape[1])))
