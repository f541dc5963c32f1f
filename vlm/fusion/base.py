"""Fusion: what visual tokens are told of geometry. A bridge with a second part.

Shapes: I images (each with geometry), N visual tokens, M geometry tokens, C visual width, D geometry width, B scenes,
S views, G tokens that are added.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gnomon.vlm.connectors.base import Bridge
from gnomon.vlm.geometry.base import GeometryOutput
from gnomon.vlm.layout import Features
from gnomon.vlm.multiview.align import ALIGNMENTS, pool
from gnomon.vlm.part import Part

Align = Literal["merge", "interp", "pool", "nearest"]


@dataclass
class Scene:
    """What is known of B scenes of one picture size.

    output    what the geometry encoder says of them
    tokens    (B,S,M,D)  its tokens as the fusion reads them, see `layers` and `frames`
    question  (B,T,C)    embeddings of the sequences they stand in
    asked     (B,T) bool where those are the text before the first answer
    vision    (B,S,M,E)  the vision encoder's features on geometry's grid; None: the fusion does not `see`
    shown     (B,S) bool the views that are images, and have vision
    """

    output: GeometryOutput
    tokens: Tensor
    question: Tensor
    asked: Tensor
    vision: Tensor | None = None
    shown: Tensor | None = None


@dataclass
class Told:
    """What a fusion makes of B scenes as a whole.

    tokens  (B,G,C)              that stand behind the scenes' images
    beside  (B,S,N,C) on `grid`  what `forward` gets of each view, as the part "scene"
    scores  (B,S,N)              likewise, as that part's saliency
    losses                       means over the scenes, weighted; added to the loss in training
    """

    tokens: Tensor
    beside: Tensor | None = None
    scores: Tensor | None = None
    grid: tuple[int, int] = (0, 0)
    losses: dict[str, Tensor] = field(default_factory=dict)


class Fusion(Bridge):
    """`forward({"vision": (I,N,C), "geometry": (I,M,D)})` yields visual features of the same shape.

    The model calls it with images that have geometry only; all others keep their tokens bit for bit. Geometry holds
    tokens, grid, `where` (which view of which scene), camera (the view's special tokens, the camera's first) and, where
    the encoder was asked for points, xyz (in the frame of the scene's first camera) and confidence per cell.

    behind  the connector, at the language model's width; else before it, at the vision encoder's
    needs   heads of the geometry encoder that it reads
    align   how geometry comes to stand beside the visual tokens; see multiview/align.py
    merge   with align merge: geometry cells per visual token and side
    layers  of the geometry encoder to read, side by side; none: its last; negative ones count from the end
    frames  views in a row whose geometry each of them gets, side by side
    extra   tokens that it adds for each scene, behind its images (see `scene`)
    sees    whether `scene` wants the vision encoder's features
    zero    whether it begins as the plain model, which untrained it then stays
    opened  how much of each token of the last call came from geometry, in 0..1, without a graph: (I,N) or one for all;
            None: it has no gate to look at
    """

    behind: bool = True
    needs: frozenset[str] = frozenset()
    align: Align = "interp"
    merge: int = 1
    layers: tuple[int, ...] = ()
    frames: int = 1
    extra: int = 0
    sees: bool = False
    zero: bool = False
    opened: Tensor | None = None

    def setup(self, widths: dict[str, int], out: int) -> None:
        """widths: of vision (where it acts), geometry (layers and frames counted), encoder and lm; out: vision's."""
        raise NotImplementedError

    def forward(self, parts: dict[str, Features]) -> Features:
        raise NotImplementedError

    def scene(self, scene: Scene) -> Told:
        """For fusions with `extra`; called before `forward`."""
        raise NotImplementedError

    def openness(self, parts: dict[str, Features]) -> Tensor | None:
        """(I,N) what has `opened` in a call with these."""
        tokens = self(parts).tokens
        return None if self.opened is None else self.opened.expand(tokens.shape[:2])

    def spec(self) -> dict[str, Any]:
        spec = super().spec()
        args = {name: arg.spec() if isinstance(arg, Part) else arg for name, arg in spec["init_args"].items()}
        return {**spec, "init_args": args}

    @property
    def cells(self) -> int:
        """Geometry tokens side by side in what `aligned` yields, but for frames and layers."""
        return self.merge**2 if self.align == "merge" else 1

    def aligned(self, parts: dict[str, Features]) -> Tensor:
        """(I,N,cells*D) the geometry of each visual token; of tokens that a reducer merged, merged alike."""
        vision, geometry = parts["vision"], parts["geometry"]
        tokens = ALIGNMENTS[self.align](finite(geometry.tokens), geometry.grid[0], vision.grid[0])
        if self.align == "merge" and tokens.shape[-1] != geometry.tokens.shape[-1] * self.cells:
            side = geometry.grid[0][0] // vision.grid[0][0]
            raise ValueError(f"{side}x{side} geometry cells lie under a visual token, merge is {self.merge}; set it so")
        return like(vision, tokens)


class Aligned(Fusion):
    """Fusions of each visual token with the geometry beside it, which a Merger has brought to the same width.

    hidden: width inside the merger; None: as wide as what comes out.
    """

    def __init__(
        self, *, align: Align = "merge", merge: int = 1, layer: int | None = None, hidden: int | None = None
    ) -> None:
        super().__init__()
        self.align, self.merge, self.hidden = align, merge, hidden
        self.layers = () if layer is None else (layer,)

    def setup(self, widths: dict[str, int], out: int) -> None:
        width = widths["geometry"] * self.cells
        self.merger = Merger(width, out, hidden=self.hidden, cells=self.cells, zero=self.zero)

    def mix(self, v: Tensor, g: Tensor, parts: dict[str, Features]) -> Tensor:
        """Visual tokens and geometry, both (I,N,C), to (I,N,C)."""
        raise NotImplementedError

    def forward(self, parts: dict[str, Features]) -> Features:
        vision = parts["vision"]
        return replace(vision, tokens=self.mix(vision.tokens, self.merger(self.aligned(parts)), parts))


class Merger(nn.Module):
    """Geometry to the visual width: normed, then two layers. zero: the last one starts at 0 and adds nothing."""

    def __init__(self, width: int, out: int, *, hidden: int | None = None, cells: int = 1, zero: bool = False) -> None:
        super().__init__()
        hidden = hidden or out
        self.cells = cells
        self.norm = nn.RMSNorm(width // cells, eps=1e-6)
        self.layers = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, out))
        if zero:
            nn.init.zeros_(self.layers[-1].weight)
            nn.init.zeros_(self.layers[-1].bias)

    def forward(self, geometry: Tensor) -> Tensor:
        """(...,cells*D): each of the cells is normalised on its own."""
        return self.layers(self.norm(geometry.unflatten(-1, (self.cells, -1))).flatten(-2))


class Gate(nn.Module):
    """z v' + (1 - z) g' with v', g' the normed tokens and z = sigmoid(W [v'; g'] + b), one per token and channel."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.vision, self.geometry = nn.LayerNorm(width), nn.LayerNorm(width)
        self.weigh = nn.Linear(2 * width, width)

    def forward(self, v: Tensor, g: Tensor, keep: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """What comes out, and (I,N) how much of it is geometry. keep (I,N) bool: whose visual value counts; the gate
        itself sees all.
        """
        v, g = self.vision(v), self.geometry(g)
        z = self.weigh(torch.cat([v, g], -1)).sigmoid()
        value = v if keep is None else torch.where(keep[..., None], v, 0)
        return z * value + (1 - z) * g, 1 - z.detach().mean(-1)


class Attention(nn.Module):
    """Multi-head attention as torch has it, of linear maps alone: what is sharded is gathered when it is called."""

    def __init__(self, width: int, heads: int, *, dropout: float = 0.0) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
        for layer in (self.query, self.key, self.value, self.out):
            nn.init.zeros_(layer.bias)
            if layer is not self.out:
                # as parts of one matrix of three times the height
                nn.init.xavier_uniform_(layer.weight, gain=0.5**0.5)

    def forward(self, query: Tensor, key: Tensor, value: Tensor, there: Tensor | None = None) -> Tensor:
        """(B,T,C) of queries (B,T,C), keys and values (B,K,C); there (B,K) bool: which keys to look at."""
        q, k, v = (
            layer(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for layer, x in ((self.query, query), (self.key, key), (self.value, value))
        )
        mask, dropout = None if there is None else there[:, None, None], self.dropout if self.training else 0.0
        said = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout)
        return self.out(said.transpose(1, 2).flatten(2))


class Learned(nn.Module):
    """Tokens that are parameters; called for each batch, since what is sharded is gathered when it is called."""

    def __init__(self, count: int, width: int, *, scale: float = 1.0) -> None:
        super().__init__()
        self.tokens = nn.Parameter(scale * torch.randn(count, width))

    def forward(self, rows: int) -> Tensor:
        """(rows,count,width)"""
        return self.tokens.repeat(rows, 1, 1)


def finite(geometry: Tensor) -> Tensor:
    """Zero in place of what is no number: 0 * inf would undo a closed gate."""
    return torch.where(torch.isfinite(geometry), geometry, 0)


def like(vision: Features, values: Tensor) -> Tensor:
    """(I,cells,A) to (I,N,A): what belongs to the cells of a grid, as the visual tokens were made of them."""
    if vision.plan is None:
        return values
    # tokens that are no cells, such as a class token, have no geometry of their own
    return vision.plan.apply(values) if vision.plan.extra is None else vision.plan.average(values)


def owners(geometry: Features) -> tuple[Tensor, int]:
    """(I,) which sample each image belongs to, counted from 0, and how many samples there are."""
    if geometry.where is None:
        return torch.arange(len(geometry.tokens), device=geometry.tokens.device), len(geometry.tokens)
    scenes, owner = geometry.where[:, 1].unique(return_inverse=True)
    return owner, len(scenes)


def keys_of(geometry: Features) -> tuple[Tensor, Tensor, Tensor]:
    """(I,1+M,D) camera token and patches of each view, (I,1+M) which of them to look at, and (I,1,1) where that is any.

    Left out is what is no number; a view of nothing else looks at all of it, which is for the caller to drop.
    """
    tokens = geometry.tokens
    if geometry.camera is not None:
        tokens = torch.cat([geometry.camera[:, :1].to(tokens.dtype), tokens], 1)
    there = torch.isfinite(tokens).all(-1)
    some = there.any(1, keepdim=True)
    return finite(tokens), there | ~some, some[..., None]


def place(parts: dict[str, Features], *, threshold: float = 0.0) -> tuple[Tensor, Tensor]:
    """(I,N,3) the mean point of each visual token, by confidence, and (I,N) whether that is above the threshold."""
    vision, geometry = parts["vision"], parts["geometry"]
    assert geometry.xyz is not None and geometry.confidence is not None, "asked for points and got none"
    grids, certain = (geometry.grid[0], vision.grid[0]), geometry.confidence.float()
    xyz = pool(finite(geometry.xyz).float(), *grids, certain)
    certain = pool(certain[..., None], *grids)
    both = like(vision, torch.cat([xyz * certain, certain], -1))
    known = both[..., 3] > threshold
    return both[..., :3] / both[..., 3:].clamp_min(1e-12), known


def sines(cells: Tensor, width: int) -> Tensor:
    """(...,2) row and column to (...,width): sines and cosines of the one, then of the other."""
    pairs = width // 4
    angles = cells[..., None] / 10000 ** (torch.arange(pairs, device=cells.device) / pairs)
    return torch.cat([angles.sin(), angles.cos()], -1).flatten(-2)


def axes_of(fusion: Fusion, width: int) -> None:
    if width % 4:
        name = type(fusion).__name__
        raise ValueError(f"{name}: width {width} has no sine and cosine of two axes; make it a multiple of 4")


def heads_of(fusion: Fusion, heads: int, width: int) -> int:
    if heads < 1 or width % heads:
        fitting = [h for h in range(1, width + 1) if width % h == 0 and width // h >= 8] or [1]
        near = min(fitting, key=lambda h: abs(h - heads))
        raise ValueError(f"{type(fusion).__name__}: {heads} heads do not divide width {width}; use {near}")
    return heads


def share_of(fusion: Fusion, **shares: float) -> None:
    """A ValueError for a probability that is none."""
    for name, value in shares.items():
        if not 0 <= value <= 1:
            raise ValueError(f"{type(fusion).__name__}: {name} {value} is not in [0, 1]; correct it")
