"""VisionZip: keep the dominant tokens and merge the others into a few contextual ones.

Paper:   VisionZip: Longer is Better but Not Necessary in Vision Language Models. arXiv:2412.04467
Rule:    T = D + C; the class token and the D-1 patches that it looks at most stay; of the R others every floor(R/C)-th
         is a target, the rest goes to the target of nearest key (cosine), and a target becomes x_t + mean of its gains
Where:   after the encoder
Differs: without a class token there are D patches, by received attention (see taps.py); D + C is always T
"""

from __future__ import annotations

import torch
from torch.nn import functional as F

from gnomon.vlm.plan import ReductionPlan
from gnomon.vlm.reduction.base import Position, ReduceContext, Stage, TokenReducer, top


class VisionZip(TokenReducer):
    """contextual: C as a share of T; in all the paper's settings it is 10/64.

    average: x_t and the mean of what it got count by their numbers of tokens, so that its norm is that of other tokens.
    """

    stage = Stage.POST_ENCODER
    needs = frozenset({"saliency", "keys", "cls"})
    ordered = False

    def __init__(
        self,
        ratio: float = 1.0,
        *,
        contextual: float = 10 / 64,
        average: bool = False,
        position: Position | None = None,
    ) -> None:
        super().__init__(ratio, position=position)
        if not 0 <= contextual < 1:
            raise ValueError(f"VisionZip: contextual {contextual} is not in [0, 1); give its share of the tokens kept")
        self.contextual, self.average = contextual, average

    def plan(self, ctx: ReduceContext) -> ReductionPlan:
        groups, length = ctx.saliency.shape
        total = self.budget(length)
        if total == length:
            return ReductionPlan.identity(groups, length, ctx.feats.device)
        contextual = int(total * self.contextual + 1e-6)
        # a class token alone would be no image
        with_cls = ctx.cls is not None and total - contextual > 1
        dominant = top(ctx.saliency, total - contextual - with_cls)
        rest = torch.ones_like(ctx.saliency, dtype=torch.bool).scatter(1, dominant, False)
        rest = rest.nonzero()[:, 1].view(groups, -1)
        extra = None
        if with_cls:
            extra = ctx.cls[:, None]
            dominant = torch.cat([dominant.new_full((groups, 1), length), dominant], 1)
        if not contextual:
            return ReductionPlan(dominant[..., None], extra=extra)

        at = torch.arange(contextual, device=rest.device) * (rest.shape[1] // contextual)
        chosen = torch.zeros(rest.shape[1], dtype=torch.bool, device=rest.device).index_fill(0, at, True)
        target, merged = rest[:, chosen], rest[:, ~chosen]
        keys = F.normalize(ctx.keys.float(), dim=-1)
        width = keys.shape[2]
        near, far = (keys.gather(1, i[..., None].expand(-1, -1, width)) for i in (target, merged))
        goes_to = (far @ near.mT).argmax(2)
        share = F.one_hot(goes_to, contextual).mT.float()
        number = share.sum(2, keepdim=True)
        share = share / (number + 1 if self.average else number.clamp(min=1))

        # of each token kept: first itself, then all that merge, most of them with weight 0
        anchor = torch.cat([dominant, target], 1)[..., None]
        index = torch.cat([anchor, merged[:, None].expand(-1, total, -1)], 2)
        weight = F.pad(share, (1, 0, dominant.shape[1], 0))
        weight[:, :, 0] = 1
        if self.average:
            weight[:, -contextual:, :1] /= number + 1
        return ReductionPlan(index, weight, extra)
