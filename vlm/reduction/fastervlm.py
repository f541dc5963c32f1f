"""FasterVLM: keep the patches that the encoder's class token looks at.

Paper:   [CLS] Attention is All You Need for Training-Free Visual Token Pruning: Make VLM Inference Faster.
         arXiv:2412.01818
Rule:    s_j = mean_h A[h, CLS, j] in the encoder's chosen block; keep the ceil(r N) largest s_j, in raster order
Where:   after the encoder
Differs: left out before the connector, not after it (the same for connectors that act on each token); an encoder
         without a class token gives received attention, one without attention its substitute (taps.py)
"""

from __future__ import annotations

from gnomon.vlm.plan import ReductionPlan
from gnomon.vlm.reduction.base import ReduceContext, Stage, TokenReducer, top


class FasterVLM(TokenReducer):
    stage = Stage.POST_ENCODER
    needs = frozenset({"saliency"})

    def plan(self, ctx: ReduceContext) -> ReductionPlan:
        return ReductionPlan.keep(top(ctx.saliency, self.budget(ctx.feats.shape[1])))
