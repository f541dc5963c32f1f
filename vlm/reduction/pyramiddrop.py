"""PyramidDrop: drop visual tokens in stages, the deeper the more.

Paper:   PyramidDrop: Accelerating Your Large Vision-Language Models via Pyramid Visual Redundancy Reduction.
         arXiv:2410.17247
Rule:    before layer k_i: s_j = mean_h softmax(q_last K^T)_j with queries and keys of layer k_i itself; the r_i N
         largest s_j stay, in raster order, and the sequence is numbered anew
Where:   prefill and training, before decoder layers 8, 16 and 24
Differs: counts are rounded up; in training a row without an answer asks with its last token instead of dropping
         nothing; three-axis ids are kept
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from gnomon.vlm.plan import ReductionPlan
from gnomon.vlm.reduction.base import Position, ReduceContext, Stage, TokenReducer, top


class PyramidDrop(TokenReducer):
    """ratio: share of the first count that is left after the last stage; stages between go down geometrically, so that
    0.125 gives the paper's 0.5, 0.25, 0.125. ratios: the share after each stage, where that is not wanted; the last of
    them is then the ratio.
    """

    stage = Stage.LLM_LAYER
    needs = frozenset({"rows"})
    score = "own"
    position = "repack"

    def __init__(
        self,
        ratio: float = 0.125,
        *,
        ratios: Sequence[float] | None = None,
        layers: Sequence[int] = (8, 16, 24),
        position: Position | None = None,
    ) -> None:
        super().__init__(ratios[-1] if ratios else ratio, position=position)
        self.layers = tuple(layers)
        if not self.layers or list(self.layers) != sorted(set(self.layers)) or self.layers[0] < 0:
            raise ValueError(
                f"PyramidDrop: layers {list(layers)} do not rise from 0 on; name each stage's layer in order"
            )
        if ratios is None:
            ratios = [self.ratio ** ((i + 1) / len(self.layers)) for i in range(len(self.layers))]
        if len(ratios) != len(self.layers) or any(a < b for a, b in zip([1.0, *ratios], ratios)):
            raise ValueError(
                f"PyramidDrop: ratios {list(ratios)} for {len(self.layers)} stages; give one in (0, 1] for each, none "
                "larger than the one before"
            )
        self.ratios = tuple(ratios)

    def budget(self, length: int, step: int = 0) -> int:
        """Tokens left of the first layer's `length` after a stage."""
        return max(1, math.ceil(self.ratios[step] * length - 1e-6))

    def plan(self, ctx: ReduceContext) -> ReductionPlan:
        return ReductionPlan.keep(top(ctx.rows.sum(1), min(ctx.feats.shape[1], self.budget(ctx.full, ctx.step))))
