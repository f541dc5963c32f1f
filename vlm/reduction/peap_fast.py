"""PEAP-Fast: blank cells of an image never enter the encoder.

Paper:   PixelWorld: Towards Perceiving Everything as Pixels. arXiv:2501.19339
Rule:    drop a cell when, in each colour, its brightest and its darkest pixel are at most `levels` of 255 apart
Where:   behind patch embedding and positions, before the encoder's first block; cells keep their own positions
Differs: the paper gives no criterion for blank; `ratio` is the least share that is kept, the least blank cells first.
         Where an encoder's blocks cannot be walked, the blank cells' tokens leave behind it; with a connector that
         merges cells, those of the merged cells behind the connector
"""

from __future__ import annotations

from gnomon.vlm.plan import ReductionPlan
from gnomon.vlm.reduction.base import Position, ReduceContext, Stage, TokenReducer, top


class PEAPFast(TokenReducer):
    """ratio: at least this share is kept, and at least one cell; 1 leaves the model untouched.

    levels: how much a blank cell may vary, in grey levels of 255.
    """

    stage = Stage.PIXEL
    needs = frozenset({"pixels", "grid"})
    adaptive = True
    position = "keep"

    def __init__(
        self,
        ratio: float = 1e-6,
        *,
        levels: int = 2,
        inside: bool | None = None,
        position: Position | None = None,
    ) -> None:
        super().__init__(ratio, position=position)
        if not 0 <= levels <= 255:
            raise ValueError(f"PEAPFast: {levels} grey levels are not in 0 to 255; 2 lets noise pass")
        self.levels, self.inside = levels, inside

    def plan(self, ctx: ReduceContext) -> ReductionPlan:
        height, width = ctx.grid
        blocks = ctx.pixels.unflatten(3, (width, -1)).unflatten(2, (height, -1))
        spread = blocks.amax((3, 5)) - blocks.amin((3, 5))
        # pixels were whole levels once
        spread = (spread.amax(1).flatten(1) * 255).round()
        kept = spread > self.levels
        return ReductionPlan.keep_where(kept.scatter(1, top(spread, self.budget(kept.shape[1])), True))
