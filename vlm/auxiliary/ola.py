"""OLA: hidden states have to tell what a depth estimator sees in the picture, or its depth itself.

Paper:   OLA-VLM: Elevating Visual Perception in Multimodal LLMs with Auxiliary Embedding Distillation. arXiv:2412.09585
Rule:    per layer, queries ask the image's tokens x: q <- q + MHA(LN(q), [LN(x); LN(q)]), q <- q + FFN(LN(q)),
         e = LN(W q). Loss = weight * sum over layers of SmoothL1(e, t) + contrast * CE(s cos(e, t_j) over the images j
         of all processes), s = min(exp(a), 100), a = 2 at first; the mean over the images that have a target
Where:   training, on hidden states of the decoder; the heads are left out of what is evaluated and exported
Differs: depth alone of its three targets; no task tokens in the sequence, so that inference is the plain model's; a
         head reads its image's own tokens and not the text around them. The release zeroes the mask of samples without
         a target, and with it the whole loss. Without an encoder t is the views' own log depth, less its mean, and e
         has no last LN
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gnomon.vlm.auxiliary.base import AuxLoss, everywhere, processes, visual
from gnomon.vlm.decoder import Kept
from gnomon.vlm.fusion.base import Learned
from gnomon.vlm.geometry.base import GeometryEncoder, GeometryInput
from gnomon.vlm.layout import Batch
from gnomon.vlm.multiview.align import interp, pool
from gnomon.vlm.part import Part, build
from gnomon.vlm.placement import Layers
from gnomon.vlm.reading import Seen
from gnomon.vlm.scenery import dtype_of


@dataclass
class Target:
    """values (I,Q,D) of each image's cells, zero where there is none, and known (I,Q)."""

    values: Tensor
    known: Tensor


class OLA(AuxLoss):
    """encoder: whose features are the target, of each image alone, the mean of its layers `of` (none: its last). It
    stands still, and is no part of what is trained or saved. None: the depth of the samples' views.

    grid     cells that the target is brought to; a query each
    size     (H,W) of the pictures that the encoder gets; None: the images' own, rounded to what it takes
    width    inside the heads; None: the target's
    """

    def __init__(
        self,
        layers: Layers = (17, 18, 19),
        *,
        encoder: GeometryEncoder | dict[str, Any] | None = None,
        of: Sequence[int] = (),
        grid: tuple[int, int] = (24, 24),
        size: tuple[int, int] | None = None,
        weight: float = 0.5,
        contrast: float = 0.3,
        heads: int = 4,
        head_width: int = 32,
        width: int | None = None,
    ) -> None:
        super().__init__(layers)
        if min(*grid, heads, head_width) < 1 or not (weight >= 0 and contrast >= 0):
            raise ValueError(
                f"OLA: grid {tuple(grid)}, heads {heads}, head_width {head_width} must be 1 or more, weight {weight} "
                f"and contrast {contrast} not negative; correct them"
            )
        encoder = build(encoder, GeometryEncoder) if isinstance(encoder, dict) else encoder
        if encoder is not None:
            _check(encoder, tuple(of), size)
        # in a tuple: no module of this one, so that nobody trains, shards or saves it
        self.encoder = (encoder,) if encoder is not None else ()
        self.of, self.grid, self.size = tuple(of), (grid[0], grid[1]), size
        self.weight, self.contrast = weight, contrast
        self.head_count, self.head_width, self.width = heads, head_width, width
        self.views = encoder is None

    def spec(self) -> dict[str, Any]:
        spec = super().spec()
        # the encoder's own spec would leave out where its weights come from
        args = {name: Part.spec(arg) if isinstance(arg, Part) else arg for name, arg in spec["init_args"].items()}
        return {**spec, "init_args": args}

    def setup(self, width: int, depth: int) -> None:
        super().setup(width, depth)
        out = self.encoder[0].width if self.encoder else 1
        inner = self.width or (out if self.encoder else self.head_count * self.head_width)
        cells, shape = self.grid[0] * self.grid[1], (self.head_count, self.head_width)
        self.heads = nn.ModuleList(
            _Resampler(width, inner, out, *shape, cells, norm=bool(self.encoder)) for _ in self.layers
        )
        self.sharpness = _Sharpness()

    def forward(self, kept: Kept, batch: Batch, seen: Sequence[Seen]) -> Tensor:
        found = [head(*visual(kept, layer, batch)).float() for layer, head in zip(self.layers, self.heads)]
        features = self._features(seen) if self.encoder else None
        # cosines and logarithms need their digits
        with torch.autocast(batch.ids.device.type, enabled=False):
            target = features or self._depth(batch)
            return self.weight * self._missed(
                found, target, images=bool(batch.pixels), like=kept.hidden[self.layers[0]]
            )

    def _missed(self, found: Sequence[Tensor], target: Target, *, images: bool, like: Tensor) -> Tensor:
        """The sum over layers, of this process. like: targets are sent to the others in its precision."""
        has = target.known.any(1) & images
        flat = F.normalize(target.values.flatten(1), dim=-1)
        others, begin = everywhere(flat.to(like.dtype))
        there = everywhere(has.long())[0] > 0
        # the mean over processes of what each of them makes is the mean over all images
        share = has * (processes() / there.sum().clamp(min=1))
        total = torch.zeros((), device=has.device)
        for told in found:
            flat = F.normalize((told * target.known[..., None]).flatten(1), dim=-1)
            confused = choice(self.sharpness(flat @ others.float().T), there, begin)
            total = total + (share * (distance(told, target) + self.contrast * confused)).sum()
        return total

    @torch.no_grad()
    def _features(self, seen: Sequence[Seen]) -> Target:
        """Of each image what the encoder says of it alone."""
        found: dict[int, Tensor] = {}
        for group in seen:
            pixels = group.pixels
            encoder = self.encoder[0].to(pixels.device)
            size = self.size or encoder.target(*pixels.shape[2:])
            if tuple(pixels.shape[2:]) != tuple(size):
                pixels = F.interpolate(pixels, size, mode="bilinear", antialias=True)
            there = torch.ones(len(pixels), 1, dtype=torch.bool, device=pixels.device)
            output = encoder.measure(GeometryInput(pixels[:, None], there), layers=self.of)
            tokens = torch.stack([output.layers[i] for i in self.of]).mean(0) if self.of else output.tokens
            found.update(zip(group.members, interp(tokens[:, 0].float(), output.grid, self.grid)))
        values = torch.stack([found[i] for i in range(len(found))])
        return Target(values, torch.ones_like(values[..., 0], dtype=torch.bool))

    def _depth(self, batch: Batch) -> Target:
        """Of each image that shows a view the logarithm of its depth, less the mean."""
        shape = max(1, len(batch.pixels)), self.grid[0] * self.grid[1]
        values = torch.zeros(*shape, 1, device=batch.ids.device)
        known = torch.zeros(shape, dtype=torch.bool, device=batch.ids.device)
        for views in batch.views:
            shown = [(image, view) for view, image in enumerate(views.image) if image >= 0]
            if views.depth is None or not shown:
                continue
            images, at = torch.tensor(shown, device=values.device).T
            depth = views.depth[at].float()
            good = (torch.isfinite(depth) & (depth > 0)).flatten(1)
            log = depth.flatten(1).where(good, 1).log()[..., None]
            onto = tuple(depth.shape[1:]), self.grid
            some = pool(good[..., None].float(), *onto) > 0
            cells = pool(log, *onto, good)
            mean = cells.sum(1, keepdim=True) / some.sum(1, keepdim=True).clamp(min=1)
            shape = (cells - mean) * some
            # a wall at one distance says nothing: its rounding errors are not to be learned
            some &= shape.abs().amax(1, keepdim=True) > 1e-5
            values[images], known[images] = shape, some[..., 0]
        return Target(values, known)


def distance(found: Tensor, target: Target) -> Tensor:
    """(I,) SmoothL1, the mean over what is known of each image; 0 of nothing."""
    each = F.smooth_l1_loss(found, target.values, reduction="none").mean(-1)
    return (each * target.known).sum(1) / target.known.sum(1).clamp(min=1)


def choice(like: Tensor, there: Tensor, begin: int) -> Tensor:
    """(I,) cross entropy of images (I,M) choosing their own target, which comes `begin` later, among those `there`."""
    own = begin + torch.arange(len(like), device=like.device)
    # one that has no target has a choice, too, so that its loss is finite where it counts for nothing
    among = there | (torch.arange(len(there), device=like.device) == own[:, None])
    return F.cross_entropy(like.masked_fill(~among, -torch.inf), own, reduction="none")


class _Resampler(nn.Module):
    """Queries that ask each image's tokens, in one layer."""

    def __init__(self, given: int, width: int, out: int, heads: int, head_width: int, queries: int, *, norm: bool):
        super().__init__()
        inner = heads * head_width
        self.head_width = head_width
        self.queries = Learned(queries, width, scale=width**-0.5)
        self.reads = nn.Linear(given, width)
        self.there, self.asks = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query, self.key, self.value = (nn.Linear(width, inner, bias=False) for _ in range(3))
        self.out = nn.Linear(inner, width, bias=False)
        self.feed = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, width, bias=False), nn.GELU(), nn.Linear(width, width, bias=False)
        )
        self.tells = nn.Sequential(nn.Linear(width, out), nn.LayerNorm(out) if norm else nn.Identity())

    def forward(self, tokens: Tensor, there: Tensor) -> Tensor:
        """(I,N,given) tokens, and (I,N) which are real, to (I,Q,out)."""
        query = self.queries(len(tokens))
        asks = self.asks(query)
        keys = torch.cat([self.there(self.reads(tokens.to(dtype_of(self)))), asks], 1)
        q, k, v = (
            layer(x).unflatten(-1, (-1, self.head_width)).transpose(1, 2)
            for layer, x in ((self.query, asks), (self.key, keys), (self.value, keys))
        )
        mask = F.pad(there, (0, asks.shape[1]), value=True)[:, None, None]
        query = query + self.out(F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2))
        return self.tells(query + self.feed(query))


class _Sharpness(nn.Module):
    """Sharpens cosines by a learned factor."""

    def __init__(self) -> None:
        super().__init__()
        self.log = nn.Parameter(torch.full((1,), 2.0))

    def forward(self, like: Tensor) -> Tensor:
        return like * self.log.exp().clamp(max=100)


def _check(encoder: GeometryEncoder, of: Sequence[int], size: tuple[int, int] | None) -> None:
    """A ValueError for a target that moves, that means nothing, or that the encoder does not have."""
    name = type(encoder).__name__
    if not encoder.frozen:
        raise ValueError(f"OLA: {name} with frozen: false as the target; it must stand still, set frozen: true")
    if list(encoder.parameters()) and not any(encoder.init_args.get(key) for key in ("weights", "path")):
        raise ValueError(f"OLA: {name} as the target has random weights; name a file or directory of trained ones")
    if encoder.needs:
        known = ", ".join(sorted(encoder.needs))
        raise ValueError(f"OLA: {name} as the target needs {known}, and sees pictures alone; use one that predicts")
    blank = torch.empty(1, 1, 3, *(size or (encoder.multiple, encoder.multiple)), device="meta")
    encoder.check(GeometryInput(blank, torch.ones(1, 1, dtype=torch.bool)), layers=of)
