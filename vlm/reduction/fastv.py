"""FastV: drop the visual tokens that the last query ignores after layer K.

Paper:   An Image is Worth 1/2 Tokens After Layer 2: Plug-and-Play Inference Acceleration for Large Vision-Language
         Models. arXiv:2403.06764
Rule:    s_j = mean_h A[h, last, j] at layer K-1; keep the ceil(r N) largest s_j, in raster order
Where:   prefill, before decoder layer K
Differs: scores come from one query row (no T x T matrix); the paper's text has the mean over all rows: `rows: all`
"""

from __future__ import annotations

from typing import Literal

from gnomon.vlm.plan import ReductionPlan
from gnomon.vlm.reduction.base import Position, ReduceContext, Stage, TokenReducer, top


class FastV(TokenReducer):
    """layer: K. The released code takes 2 in the paper and 3 in its demo.

    rows: "last" asks the last token, as the released code does; "all" asks every token, as the paper has it.
    """

    stage = Stage.LLM_LAYER
    position = "keep"

    def __init__(
        self,
        ratio: float = 0.5,
        *,
        layer: int = 2,
        rows: Literal["last", "all"] = "last",
        position: Position | None = None,
    ) -> None:
        super().__init__(ratio, position=position)
        if layer < 1:
            raise ValueError(f"FastV: layer {layer} has no layer before it to take scores from; use 1 or more")
        if rows not in ("last", "all"):
            raise ValueError(f"FastV: rows {rows!r} is unknown; use last or all")
        self.layers = (layer,)
        self.needs = frozenset({"rows" if rows == "last" else "received"})

    def plan(self, ctx: ReduceContext) -> ReductionPlan:
        # in training several rows may ask, one before each answer
        scores = ctx.rows.sum(1) if ctx.received is None else ctx.received
        return ReductionPlan.keep(top(scores, self.budget(ctx.feats.shape[1])))
