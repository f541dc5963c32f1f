"""DART: keep a few pivots and the tokens that resemble them least.

Paper:   Stop Looking for Important Tokens in Multimodal Language Models: Duplication Matters More. arXiv:2502.11494
Rule:    pivots: the 4 visual and the 4 later text tokens with the largest |k|_1 at layer K-1; each in turn takes the
         tokens not yet taken whose cosine to it, of hidden states after the final norm, is lowest
Where:   prefill, before decoder layer K
Differs: pivots choose in descending order of |k|_1 (the original's order is that of a set of numbers); exactly
         ceil(r N) tokens stay, where the original keeps 4 + 8 floor(r N / 8)
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from gnomon.vlm.plan import ReductionPlan
from gnomon.vlm.reduction.base import Position, ReduceContext, Stage, TokenReducer


class DART(TokenReducer):
    """layer: K. pivots: visual and text pivots; rows with less text behind their images have fewer."""

    stage = Stage.LLM_LAYER
    needs = frozenset({"lm_keys", "normed"})
    position = "keep"

    def __init__(
        self,
        ratio: float = 0.2222,
        *,
        layer: int = 5,
        pivots: tuple[int, int] = (4, 4),
        position: Position | None = None,
    ) -> None:
        super().__init__(ratio, position=position)
        if layer < 1:
            raise ValueError(f"DART: layer {layer} has no layer before it to take keys from; use 1 or more")
        if len(pivots) != 2 or min(pivots) < 1:
            raise ValueError(f"DART: pivots {pivots!r} are not two positive numbers; give visual and text pivots")
        self.layers, self.pivots = (layer,), tuple(pivots)

    def plan(self, ctx: ReduceContext) -> ReductionPlan:
        count = self.budget(ctx.feats.shape[1])
        norm = ctx.lm_keys.abs().float().sum(2)
        visual, text = norm.gather(1, ctx.visual), norm.gather(1, ctx.text_at.clamp(min=0))
        text = text.masked_fill(ctx.text_at <= ctx.visual[:, -1:], -1.0)
        first, second = (_largest(values, most) for values, most in zip((visual, text), self.pivots))
        taken = torch.zeros_like(visual, dtype=torch.bool).scatter_(1, first[:, :count], True)
        strength = torch.cat([visual.gather(1, first), text.gather(1, second)], 1)
        place = torch.cat([ctx.visual.gather(1, first), ctx.text_at.gather(1, second)], 1)
        order = torch.argsort(strength, dim=1, descending=True, stable=True)
        states = F.normalize(ctx.normed.float(), dim=2)
        tokens = _at(states, ctx.visual)
        likeness = _at(states, place.gather(1, order).clamp(min=0)) @ tokens.transpose(1, 2)
        quota = _shares(count - taken.sum(1), (strength >= 0).sum(1), strength.shape[1])
        for pivot, share in zip(likeness.unbind(1), quota.unbind(1)):
            rank = torch.argsort(pivot.masked_fill(taken, torch.inf), dim=1, stable=True).argsort(1)
            taken = taken | (rank < share[:, None])
        return ReductionPlan.keep(taken.nonzero()[:, 1].view(len(taken), count))


def _largest(values: Tensor, most: int) -> Tensor:
    return torch.argsort(values, dim=1, descending=True, stable=True)[:, :most]


def _at(states: Tensor, index: Tensor) -> Tensor:
    return states.gather(1, index[..., None].expand(-1, -1, states.shape[2]))


def _shares(total: Tensor, pivots: Tensor, most: int) -> Tensor:
    """(G,most) how many tokens each pivot takes: equally many, the first ones one more where that does not work out."""
    number = torch.arange(most, device=total.device)
    each = total[:, None] // pivots[:, None] + (number < (total % pivots)[:, None])
    return each * (number < pivots[:, None])
