"""SparseVLM: the words that the image concerns vote on its tokens, layer after layer; some of the outvoted are merged.

Paper:   SparseVLM: Visual Token Sparsification for Efficient Vision-Language Model Inference. arXiv:2410.04417
Rule:    raters: text t behind the image with m_t = mean_v softmax_t(v t) above the mean of m; s_j = mean over heads and
         raters of A[h, t, j] in the layer before; the largest s_j stay; of the others the best 30 % are clustered by
         density peaks (one cluster in ten tokens), and each cluster's mean comes after those that stay
Where:   prefill, behind decoder layers 2, 6 and 15, that is before 3, 7 and 16
Differs: ratio counts what is left after the last stage, merged tokens included, and the stages before go down
         geometrically; target takes the paper's counts, to which merged tokens come on top; equal densities are told
         apart by order and not by noise; without a rater the last token votes; three-axis ids are kept
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from gnomon.vlm.plan import ReductionPlan
from gnomon.vlm.reduction.base import Position, ReduceContext, Stage, TokenReducer, top

COUNTS = {
    "v1": {192: (300, 200, 110), 128: (303, 110, 36), 96: (238, 48, 26), 64: (66, 30, 17)},
    "v2": {192: (300, 200, 118), 128: (238, 108, 60), 96: (246, 54, 28), 64: (66, 34, 20)},
}
"""Of 576 tokens, those that stay after each stage, by the name of the setting."""


class SparseVLM(TokenReducer):
    """Give one of these:

    ratio   share of the first count that is left after the last stage
    target  a setting of the released code, scaled to the image's number of tokens: 192, 128, 96 or 64
    prune   the paper's own rule: each stage drops this share of (tokens - rank of the raters' attention)

    version  v2 merges nothing, keeps position ids, divides attention by what rotary embeddings alone would make of it,
             and averages only the `heads` heads that then look at the image most
    """

    stage = Stage.LLM_LAYER

    def __init__(
        self,
        ratio: float = 1.0,
        *,
        target: int | None = None,
        prune: float | None = None,
        version: Literal["v1", "v2"] = "v1",
        heads: int = 14,
        layers: Sequence[int] = (3, 7, 16),
        position: Position | None = None,
    ) -> None:
        super().__init__(ratio, position=position)
        if version not in COUNTS:
            raise ValueError(f"SparseVLM: version {version!r} is unknown; use v1 or v2")
        if target is not None and (target not in COUNTS[version] or len(layers) != 3):
            raise ValueError(f"SparseVLM: target {target} in {len(layers)} stages; use 192, 128, 96 or 64 in three")
        if prune is not None and not 0 < prune <= 1:
            raise ValueError(f"SparseVLM: prune {prune} is not in (0, 1]; give the share of what may go")
        if (target is not None) + (prune is not None) + (ratio != 1) > 1:
            raise ValueError(
                f"SparseVLM: ratio {ratio}, target {target} and prune {prune} are three ways to say it; give one"
            )
        if list(layers) != sorted(set(layers)) or not layers or layers[0] < 1:
            raise ValueError(
                f"SparseVLM: layers {list(layers)} do not rise from 1 on; name each stage's layer in order"
            )
        self.target, self.prune, self.version, self.heads, self.layers = target, prune, version, heads, tuple(layers)
        self.adaptive = prune is not None
        self.position = position or ("repack" if version == "v1" else "keep")
        self.needs = frozenset({"text", "first", "rows"} | ({"head_rows", "rotary"} if version == "v2" else set()))

    def idle(self) -> bool:
        return self.ratio == 1 and self.target is None and self.prune is None

    def queries(self, ctx: ReduceContext) -> Tensor | None:
        """The raters."""
        behind = ctx.text_at > ctx.visual[:, -1:]
        logits = (ctx.first.float() @ ctx.text.float().transpose(1, 2)).masked_fill(~behind[:, None], -torch.inf)
        relevance = logits.softmax(2).nan_to_num(0.0).mean(1)
        mean = relevance.sum(1, keepdim=True) / behind.sum(1, keepdim=True).clamp(min=1)
        raters = behind & (relevance > mean)
        first = torch.argsort(~raters, dim=1, stable=True)[:, : int(raters.sum(1).max())]
        return ctx.text_at.gather(1, first).masked_fill(~raters.gather(1, first), -1)

    def plan(self, ctx: ReduceContext) -> ReductionPlan:
        scores = ctx.rows.sum(1) if self.version == "v1" else self._corrected(ctx)
        counts = self._counts(ctx)
        if self.prune is None:
            stay, merged = counts[0]
            if merged == 0:
                return ReductionPlan.keep(top(scores, stay))
            return ReductionPlan.merge(_owners(scores, ctx.feats, stay, merged), stay + merged)
        owner = [_owners(scores[i : i + 1], ctx.feats[i : i + 1], *pair) for i, pair in enumerate(counts)]
        total = torch.tensor(counts, device=scores.device).sum(1)
        return replace(ReductionPlan.merge(torch.cat(owner), int(total.max())), count=total)

    def _counts(self, ctx: ReduceContext) -> list[tuple[int, int]]:
        """For each group how many tokens stay as they are, and into how many others are merged."""
        length, groups = ctx.feats.shape[1], len(ctx.feats)
        if self.prune is not None:
            free = (length - torch.linalg.matrix_rank(ctx.rows.float())).tolist()
            stay = [max(1, length - int(self.prune * max(0, n))) for n in free]
        elif self.target is not None:
            count = COUNTS[self.version][self.target][ctx.step] * ctx.full / 576
            stay = [max(1, min(round(count), length - 1))] * groups
        else:
            share = self.ratio ** ((ctx.step + 1) / len(self.layers))
            total = min(length, max(1, math.ceil(share * ctx.full - 1e-6)))
            return [(total, 0) if self.version == "v2" else _with_merged(length, total)] * groups
        return [(n, 0 if self.version == "v2" else clusters(length - n)) for n in stay]

    def _corrected(self, ctx: ReduceContext) -> Tensor:
        """(G,N) scores without the part that distance alone explains, from the heads that look at the image."""
        asking = ctx.rotary.gather(1, ctx.asking.clamp(min=0)[..., None].expand(-1, -1, ctx.rotary.shape[2]))
        seen = ctx.rotary.gather(1, ctx.visual[..., None].expand(-1, -1, ctx.rotary.shape[2]))
        # vectors of ones, rotated: their product is that of the cosines plus that of the sines
        alone = (asking.float() @ seen.float().transpose(1, 2)) * (ctx.rotary.shape[2] / 2) ** -0.5
        scores = torch.where(ctx.asking[:, None, :, None] >= 0, ctx.head_rows / alone[:, None], 0.0)
        best = torch.argsort(scores.sum((2, 3)), dim=1, descending=True, stable=True)[:, : self.heads]
        return scores.sum(2).gather(1, best[..., None].expand(-1, -1, scores.shape[3])).mean(1)


def clusters(outvoted: int) -> int:
    """Merged tokens for so many that do not stay."""
    return _candidates(outvoted) // 10 + 1 if outvoted else 0


def _candidates(outvoted: int) -> int:
    return int(0.3 * outvoted) + 1


def _with_merged(length: int, total: int) -> tuple[int, int]:
    """`total` tokens as those that stay and those that are merged; none are where they have no room."""
    for stay in range(total, -1, -1):
        if stay + clusters(length - stay) == total:
            return stay, total - stay
    return total, 0


def _owners(scores: Tensor, feats: Tensor, stay: int, merged: int) -> Tensor:
    """(G,N) the output token that each token becomes or goes into, -1 for none."""
    number = torch.arange(stay, device=scores.device)
    kept = top(scores, stay)
    owner = torch.full_like(scores, -1, dtype=torch.long).scatter(1, kept, number.expand(len(kept), -1))
    if merged == 0:
        return owner
    outvoted = scores.scatter(1, kept, -torch.inf)
    pool = torch.argsort(outvoted, dim=1, descending=True, stable=True)[:, : _candidates(scores.shape[1] - stay)]
    tokens = feats.detach().float().gather(1, pool[..., None].expand(-1, -1, feats.shape[2]))
    return owner.scatter(1, pool, stay + density_peaks(tokens, merged))


def density_peaks(tokens: Tensor, count: int) -> Tensor:
    """(G,M) which of `count` clusters each of the (G,M,C) tokens belongs to, the one with the highest peak first."""
    most = tokens.shape[1]
    itself = torch.eye(most, dtype=torch.bool, device=tokens.device)
    distance = (torch.cdist(tokens, tokens) * tokens.shape[2] ** -0.5).masked_fill(itself, 0.0)
    density = (-distance.topk(count, dim=2, largest=False).values.square().mean(2)).exp()
    order = torch.arange(most, device=tokens.device)
    mine, other = density[:, :, None], density[:, None]
    denser = (other > mine) | ((other == mine) & (order < order[:, None]))
    farthest = distance.amax((1, 2))[:, None, None]
    height = torch.where(denser, distance, farthest).amin(2)
    centre = torch.argsort(density * height, dim=1, descending=True, stable=True)[:, :count]
    member = distance.gather(1, centre[..., None].expand(-1, -1, most)).argmin(1)
    return member.scatter(1, centre, torch.arange(count, device=tokens.device).expand(len(tokens), -1))
