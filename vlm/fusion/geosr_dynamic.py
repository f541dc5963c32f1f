"""GeoSRDynamic: geometry passes a bottleneck of what the question asks, and vision is masked where that looks.

Paper:   Make Geometry Matter for Spatial Reasoning (the branch for video). arXiv:2603.26639
Rule:    learned queries ask the question's embeddings (Q-Former 1), then geometry (Q-Former 2): the bottleneck.
         g' = MHA(RMSNorm(g), RMSNorm(bottleneck)), v' = z (k LN(v)) + (1 - z) LN(g'), z as in Gated. In training, with
         probability beta per sample, k = 0 for the ceil(gamma N) tokens with the highest attention of Q-Former 2
Where:   behind the connector, before the language model; the bottleneck's tokens stand behind the sample's images
Differs: frames are images of their own, and each of a run of `frames` gets the geometry of all; every attention head
         has keys of its own (the release shares them in groups, as its language model does)
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gnomon.vlm.fusion.base import (
    Attention,
    Fusion,
    Gate,
    Learned,
    Merger,
    Scene,
    Told,
    finite,
    heads_of,
    like,
    owners,
    share_of,
)
from gnomon.vlm.layout import Features
from gnomon.vlm.multiview.align import merge as merged


class GeoSRDynamic(Fusion):
    """queries: tokens of the bottleneck. hidden: width inside the Q-Formers' feed-forward blocks; None: 4 times out."""

    align = "merge"

    def __init__(
        self,
        *,
        merge: int = 1,
        frames: int = 2,
        layer: int | None = None,
        queries: int = 32,
        heads: int = 28,
        hidden: int | None = None,
        beta: float = 0.5,
        gamma: float = 0.8,
    ) -> None:
        super().__init__()
        share_of(self, beta=beta, gamma=gamma)
        if min(merge, frames, queries) < 1:
            raise ValueError(f"GeoSRDynamic: merge {merge}, frames {frames}, queries {queries}; all must be 1 or more")
        self.merge, self.frames, self.extra = merge, frames, queries
        self.layers = () if layer is None else (layer,)
        self.heads, self.hidden, self.beta, self.gamma = heads, hidden, beta, gamma

    def setup(self, widths: dict[str, int], out: int) -> None:
        width, heads = widths["geometry"] * self.cells, heads_of(self, self.heads, out)
        if out // heads % 2:
            raise ValueError(
                f"GeoSRDynamic: heads of width {out // heads} cannot be rotated; use another number of heads"
            )
        self.merger = Merger(width, out, hidden=width)
        self.queries = Learned(self.extra, out)
        self.reads, self.looks = (_QFormer(out, heads, self.hidden or 4 * out) for _ in range(2))
        self.norm, self.asks, self.answers = (nn.RMSNorm(out, eps=1e-6) for _ in range(3))
        self.attention = Attention(out, heads)
        self.gate = Gate(out)

    def scene(self, scene: Scene) -> Told:
        output, tokens = scene.output, finite(scene.tokens[:, :: self.frames])
        grid = output.grid[0] // self.merge, output.grid[1] // self.merge
        cells = merged(tokens.flatten(0, 1), output.grid, grid).unflatten(-1, (self.cells, self.frames, -1))
        # inside by frame, row, column, channel
        geometry = self.merger(cells.transpose(-2, -3).flatten(-3)).unflatten(0, tokens.shape[:2])
        valid = output.valid[:, :: self.frames, None].expand(geometry.shape[:3]).flatten(1)
        counted = torch.arange(max(self.extra, scene.asked.shape[1]), device=valid.device)[:, None].expand(-1, 3)
        places = torch.cartesian_prod(*(torch.arange(n, device=valid.device) for n in (tokens.shape[1], *grid)))

        query = self.queries(len(tokens))
        query, _ = self.reads(
            query, scene.question, scene.asked, counted[: self.extra], counted[: scene.asked.shape[1]]
        )
        query, seen = self.looks(query, geometry.flatten(1, 2), valid, counted[: self.extra], places)
        bottleneck = self.norm(query)
        told = self.answers(bottleneck)
        attended = self.attention(self.asks(geometry.flatten(1, 2)), told, told)

        views = torch.arange(scene.tokens.shape[1], device=valid.device) // self.frames
        beside, scores = (x.unflatten(1, geometry.shape[1:3])[:, views] for x in (attended, seen))
        return Told(bottleneck, beside, scores, grid)

    def forward(self, parts: dict[str, Features]) -> Features:
        vision = parts["vision"]
        mixed, self.opened = self.gate(vision.tokens, self._beside(parts), self.kept(parts))
        return replace(vision, tokens=mixed)

    def _beside(self, parts: dict[str, Features]) -> Tensor:
        vision, scene = parts["vision"], parts["scene"]
        if vision.grid[0] != scene.grid[0]:
            sizes = " and ".join(f"{h}x{w}" for h, w in (scene.grid[0], vision.grid[0]))
            raise ValueError(
                f"GeoSRDynamic: merged geometry and visual tokens lie on grids of {sizes}; set merge to fit"
            )
        return like(vision, scene.tokens)

    def kept(self, parts: dict[str, Features]) -> Tensor | None:
        """(I,N) bool: in training, a new draw of the visual tokens whose value counts."""
        if not self.training:
            return None
        vision = parts["vision"]
        scores = like(vision, parts["scene"].saliency[..., None])[..., 0].masked_fill(~vision.valid, -torch.inf)
        owner, samples = owners(parts["geometry"])
        masked = torch.rand(samples, device=owner.device) < self.beta
        keep = torch.ones_like(vision.valid)
        for sample in range(samples):
            own = owner == sample
            count = math.ceil(self.gamma * int(vision.valid[own].sum()))
            gone = torch.zeros_like(scores[own]).flatten().bool()
            gone[scores[own].flatten().topk(count).indices] = True
            keep[own] = ~(gone.view_as(keep[own]) & masked[sample])
        return keep


class _QFormer(nn.Module):
    """Queries ask targets, both normed by one weight, and pass a SwiGLU block."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.heads = heads
        self.before, self.after = nn.RMSNorm(width, eps=1e-6), nn.RMSNorm(width, eps=1e-6)
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.out = nn.Linear(width, width, bias=False)
        self.opens, self.up, self.down = nn.Linear(width, hidden), nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(
        self, query: Tensor, target: Tensor, there: Tensor, at: Tensor, target_at: Tensor
    ) -> tuple[Tensor, Tensor]:
        """(B,G,C) and (B,T), how much of all attention each target gets, from 0 to 1 and without a graph."""
        normed, target = self.before(query), self.before(target.to(query.dtype))
        q, k, v = (
            layer(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for layer, x in ((self.query, normed), (self.key, target), (self.value, target))
        )
        scores = rotate(q, at) @ rotate(k, target_at).mT / q.shape[-1] ** 0.5
        # of nothing there at all, everything: such a row has no question
        there = there | ~there.any(1, keepdim=True)
        weights = scores.masked_fill(~there[:, None, None], -torch.inf).float().softmax(-1)
        said = (weights.to(v.dtype) @ v).transpose(1, 2).flatten(2)
        query = query + self.out(said)
        normed = self.after(query)
        share = weights.detach().mean((1, 2))
        low = share.masked_fill(~there, torch.inf).amin(1, keepdim=True)
        share = (share - low).clamp_min(0)
        share = share / share.amax(1, keepdim=True).clamp_min(1e-6)
        return query + self.down(F.silu(self.opens(normed)) * self.up(normed)), share


def rotate(x: Tensor, at: Tensor, *, base: float = 1e6) -> Tensor:
    """(B,H,T,D) turned by places (T,3): a quarter of the pairs by time, the rest by row and by column."""
    pairs = x.shape[-1] // 2
    time = pairs // 4
    axis = torch.tensor([0] * time + [1] * ((pairs - time) // 2) + [2] * (pairs - time - (pairs - time) // 2))
    speed = base ** (-torch.arange(pairs, device=x.device) / pairs)
    angles = at[:, axis.to(at.device)] * speed
    cos, sin = (torch.cat([f, f], -1).to(x.dtype) for f in (angles.cos(), angles.sin()))
    first, second = x.chunk(2, -1)
    return x * cos + torch.cat([-second, first], -1) * sin
