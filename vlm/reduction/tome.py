"""ToMe: in every block of the encoder, the most similar tokens merge.

Paper:   Token Merging: Your ViT But Faster. arXiv:2210.09461
Rule:    A = even positions, B = odd ones; each a in A meets the b in B with the largest cos(k_a, k_b), k the mean key
         over heads; the r best pairs merge to their mean weighted by size; later blocks add log size to their logits
Where:   inside the encoder, between attention and MLP of every block
Differs: how many merge follows from the kept share; tokens leave the last block in the order of their first cells; a
         block that must lose more than half merges several times. Behind an encoder whose blocks cannot be walked, and
         behind a connector that merges cells, the same happens in rounds, with features for keys, in raster order
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from gnomon.vlm.plan import ReductionPlan
from gnomon.vlm.reduction.base import Position, ReduceContext, Stage, TokenReducer


class ToMe(TokenReducer):
    """inflect: how what merges per block goes on: 0 as much in each, -1 linearly falling to nothing, 1 rising from it.

    rounds: how often tokens merge where it acts on the encoder's output.
    """

    stage = Stage.VIT_LAYER
    position = "centroid"

    def __init__(
        self,
        ratio: float = 0.5,
        *,
        inflect: float = 0.0,
        inside: bool | None = None,
        rounds: int = 8,
        position: Position | None = None,
    ) -> None:
        super().__init__(ratio, position=position)
        if not -1 <= inflect <= 1:
            raise ValueError(f"ToMe: inflect {inflect} is not in [-1, 1]; use 0 for as many merges in every block")
        if rounds < 1:
            raise ValueError(f"ToMe: {rounds} rounds merge nothing; use 1 or more")
        self.inflect, self.inside, self.rounds = inflect, inside, rounds

    def left(self, full: int, step: int, steps: int) -> int:
        """Tokens left of `full` after this step, of which all together lose what the ratio says."""
        share = (step + 1) / steps
        # the integral of a straight line from 1 - inflect to 1 + inflect
        share += self.inflect * share * (share - 1)
        return full - int(share * (full - self.budget(full)) + 1e-6)

    @torch.no_grad()
    def plan(self, ctx: ReduceContext) -> ReductionPlan:
        groups, count, _ = ctx.feats.shape
        inside = ctx.layer is not None
        if inside:
            lengths = _halved(count, [self.left(ctx.full, ctx.step, ctx.steps)])
        else:
            lengths = _halved(count, [self.left(count, step, self.rounds) for step in range(self.rounds)])
        if not lengths:
            return ReductionPlan.identity(groups, count, ctx.feats.device)
        keys, mass = (ctx.keys if inside else ctx.feats).float(), ctx.size
        owner = torch.arange(count, device=keys.device).expand(groups, -1)
        for k, length in enumerate(lengths):
            into = match(keys, keys.shape[1] - length, ctx.prefix)
            into = into if inside else _sorted(into, length)
            owner = into.gather(1, owner)
            if k + 1 < len(lengths):
                mass = torch.ones_like(owner, dtype=keys.dtype) if mass is None else mass
                keys, mass = _sum(keys * mass[..., None], into, length), _sum(mass[..., None], into, length)[..., 0]
                keys = keys / mass[..., None]
        return ReductionPlan.merge(owner, lengths[-1], ctx.size)


def match(keys: Tensor, merges: int, prefix: int) -> Tensor:
    """(G,N) where each token goes when the best `merges` pairs become one: what is left of A, then B.

    prefix: number of tokens before these; positions are even or odd by counting them, too.
    """
    count = keys.shape[1]
    keys = F.normalize(keys, dim=2)
    a, b = keys[:, prefix % 2 :: 2], keys[:, 1 - prefix % 2 :: 2]
    best, partner = (a @ b.transpose(1, 2)).max(2)
    order = torch.argsort(best, dim=1, descending=True, stable=True)
    stay = order[:, merges:]
    # the original sorts for the sake of the class token only
    stay = stay.sort(1).values if prefix else stay
    numbers = torch.arange(count, device=keys.device).expand(len(keys), -1)
    left = a.shape[1] - merges
    into_a = (left + partner).scatter(1, stay, numbers[:, :left])
    into = torch.empty_like(numbers)
    into[:, prefix % 2 :: 2], into[:, 1 - prefix % 2 :: 2] = into_a, numbers[:, left : left + b.shape[1]]
    return into


def _sorted(into: Tensor, length: int) -> Tensor:
    """The same merges, with what comes out of them in the order of their first tokens."""
    numbers = torch.arange(into.shape[1], device=into.device).expand_as(into)
    first = into.new_full((len(into), length), into.shape[1]).scatter_reduce(1, into, numbers, "amin")
    return first.argsort(1).argsort(1).gather(1, into)


def _sum(values: Tensor, into: Tensor, length: int) -> Tensor:
    total = values.new_zeros(len(into), length, values.shape[2])
    return total.scatter_add(1, into[..., None].expand_as(values), values)


def _halved(count: int, targets: list[int]) -> list[int]:
    """Numbers of tokens on the way to the targets, none less than half of the one before."""
    lengths = [count]
    for target in targets:
        while lengths[-1] > target:
            lengths.append(max(target, lengths[-1] - lengths[-1] // 2))
    return lengths[1:]
