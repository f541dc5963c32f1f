"""SeGPruner: the most salient tokens of a view, and beside them the ones most spread out in space and meaning.

Paper:   SeGPruner: Semantic-Geometric Visual Token Pruner for 3D Question Answering. arXiv:2603.29437
Rule:    floor(share * T) tokens of the largest saliency; then, of the rest, the most salient, again and again the one
         whose nearest chosen one is farthest, by lam * |p_i - p_j| / d + (1 - lam) (1 - cos(x_i, x_j)), d the largest
         distance to the first
Where:   after the encoder, view by view
Differs: a token is never chosen twice; one without a finite point is at distance 0 from all others
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from gnomon.vlm.plan import ReductionPlan
from gnomon.vlm.reduction.base import Position, ReduceContext, Stage, TokenReducer, farthest


class SeGPruner(TokenReducer):
    """share: of the kept tokens, how many are kept for their saliency.

    lam: what distance in space counts against distance in meaning, from 0 to 1.
    """

    stage = Stage.POST_ENCODER
    needs = frozenset({"saliency", "xyz"})

    def __init__(
        self, ratio: float = 0.23, *, share: float = 0.5, lam: float = 0.5, position: Position | None = None
    ) -> None:
        super().__init__(ratio, position=position)
        for name, value in (("share", share), ("lam", lam)):
            if not 0 <= value <= 1:
                raise ValueError(f"SeGPruner: {name} {value} is not in [0, 1]; 0.5 is in the middle")
        self.share, self.lam = share, lam

    @torch.no_grad()
    def plan(self, ctx: ReduceContext) -> ReductionPlan:
        length = ctx.feats.shape[1]
        budget = self.budget(length)
        salient = int(budget * self.share)
        order = torch.argsort(ctx.saliency, dim=1, descending=True, stable=True)
        chosen = order[:, :salient]
        if salient < budget:
            rest = order[:, salient:]
            first = torch.zeros_like(rest[:, :1])
            spread = farthest(self._distance(_at(ctx.feats, rest), _at(ctx.xyz, rest)), first, budget - salient)
            chosen = torch.cat([chosen, rest.gather(1, spread)], 1)
        return ReductionPlan.keep(chosen.sort(1).values)

    def _distance(self, feats: Tensor, points: Tensor) -> Tensor:
        unit = F.normalize(feats, dim=2)
        known = points.isfinite().all(2, keepdim=True)
        apart = torch.cdist(*[points.masked_fill(~known, 0)] * 2, compute_mode="donot_use_mm_for_euclid_dist")
        apart = apart * (known & known.transpose(1, 2))
        apart = apart / apart[:, :1].amax(2, keepdim=True).clamp(min=1e-6)
        return self.lam * apart + (1 - self.lam) * (1 - unit @ unit.transpose(1, 2))


def _at(values: Tensor, index: Tensor) -> Tensor:
    """(G,M,C) of (G,N,C), in float32."""
    return values.float().gather(1, index[..., None].expand(-1, -1, values.shape[2]))
