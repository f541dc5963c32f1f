"""The shared nouns: where each token of a batch came from, and how pixels become tokens.

Shapes: B rows, T tokens, I images in the batch, N visual tokens, C width, h,w grid.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from enum import IntEnum
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from gnomon.vlm.plan import ReductionPlan

IGNORE = -100
"""Label of a position that is not trained on (torch's default ignore_index)."""


class Kind(IntEnum):
    PAD = 0
    TEXT = 1
    IMAGE = 2
    GEOMETRY = 3


class Movable:
    """A dataclass of tensors that moves as one."""

    def to(self, device: torch.device | str, non_blocking: bool = False):
        def move(value: Any) -> Any:
            if isinstance(value, (Tensor, Movable)):
                return value.to(device, non_blocking=non_blocking)
            if isinstance(value, list):
                return [move(item) for item in value]
            return value

        return replace(self, **{f.name: move(getattr(self, f.name)) for f in fields(self)})


@dataclass
class TokenLayout(Movable):
    """What stands at every position of a batch of sequences.

    kind      (B,T) long          Kind
    image     (B,T) long          which image (or crop) of its row, in order of appearance; -1 for text and padding
    cell      (B,T,2) long        row, column on that image's token grid; -1 for text, padding and marks like row ends
    position  (B,T) or (3,B,T)    position ids as the language model gets them; three axes are time, row and column
    document  (B,T) long | None   which packed sample; None: one sample per row
    extent    (B,T,2) long | None rows and columns of the grid that a cell is on, -1 for others; None: the cells tell
    """

    kind: Tensor
    image: Tensor
    cell: Tensor
    position: Tensor
    document: Tensor | None = None
    extent: Tensor | None = None

    @property
    def shape(self) -> torch.Size:
        return self.kind.shape

    @property
    def visible(self) -> Tensor:
        return self.kind != Kind.PAD

    @property
    def is_image(self) -> Tensor:
        return self.kind == Kind.IMAGE

    @property
    def is_cell(self) -> Tensor:
        """Image tokens that stand for cells of a grid; row ends and other marks do not."""
        return self.is_image & (self.cell[..., 0] >= 0)

    @classmethod
    def text(cls, rows: int, length: int, *, start: int = 0, device: torch.device | str = "cpu") -> TokenLayout:
        """Plain text, nothing padded."""
        position = torch.arange(start, start + length, device=device).expand(rows, length)
        return cls(
            kind=torch.full((rows, length), Kind.TEXT, device=device),
            image=torch.full((rows, length), -1, device=device),
            cell=torch.full((rows, length, 2), -1, device=device),
            position=position,
        )


def extents(image: Tensor, cell: Tensor, known: Tensor | None = None) -> Tensor:
    """(B,T,2) rows and columns of the grids that cells (B,T,2) of images (B,T) are on; -1 where the image is -1.

    A grid ends with its last cell that is there, or as far out as is `known` of it from before cells left.
    """
    least = cell + 1 if known is None else torch.maximum(cell + 1, known)
    slot = (image + 1)[..., None].expand_as(cell)
    largest = cell.new_zeros(len(cell), int(image.max()) + 2, 2).scatter_reduce(1, slot, least, "amax")
    return torch.where(image[..., None] >= 0, largest.gather(1, slot), -1)


@dataclass
class Features(Movable):
    """What an encoder or a bridge yields for I images: padded tokens, and the grid each image has.

    tokens  (I,N,C)      raster order, zeros after an image's last token
    grid    I x (h,w)    h*w tokens of image i are real
    plan                 how the tokens were made of the grid's cells; None: one per cell
    where   (I,3) long   of geometry: number of the survey's output, scene and view in it
    The rest is there when a method asks for it, aligned with `tokens` along (I,N). See ReduceContext.
    """

    tokens: Tensor
    grid: list[tuple[int, int]]
    plan: ReductionPlan | None = None
    cls: Tensor | None = None
    keys: Tensor | None = None
    saliency: Tensor | None = None
    wide_keys: Tensor | None = None
    wide_saliency: Tensor | None = None
    xyz: Tensor | None = None
    confidence: Tensor | None = None
    camera: Tensor | None = None
    where: Tensor | None = None

    @property
    def counts(self) -> list[int]:
        return [h * w for h, w in self.grid] if self.plan is None else self.plan.counts.tolist()

    @property
    def valid(self) -> Tensor:
        """(I,N) bool: which tokens are real."""
        counts = torch.tensor(self.counts, device=self.tokens.device)
        return torch.arange(self.tokens.shape[1], device=self.tokens.device) < counts[:, None]

    def cells(self) -> Tensor:
        """(I,N,2) row and column of each token of images of one size; of a merged one, the mean over its sources."""
        (h, w), device = self.grid[0], self.tokens.device
        assert all(grid == (h, w) for grid in self.grid), "cells of images of several sizes"
        cells = torch.cartesian_prod(torch.arange(h, device=device), torch.arange(w, device=device)).float()
        cells = cells.view(1, h * w, 2).expand(len(self.grid), -1, -1)
        return cells if self.plan is None else self.plan.average(cells)

    def at(self, images: Tensor) -> Features:
        """These of the images alone; what is there for each image goes along."""
        names = ("tokens", "cls", "keys", "saliency", "wide_keys", "wide_saliency", "xyz", "confidence", "camera")
        names = (*names, "where")
        chosen = {name: value[images] for name in names if (value := getattr(self, name)) is not None}
        plan = None if self.plan is None else self.plan.at(images)
        return replace(self, **chosen, grid=[self.grid[i] for i in images.tolist()], plan=plan)

    def merged(self, side: int) -> Features:
        """What is known of blocks of side x side cells of images of one size: the mean over each block."""
        if self.plan is not None:
            raise ValueError("tokens that left inside the encoder cannot be merged into blocks; use another connector")
        h, w = self.grid[0]

        def pool(values: Tensor | None) -> Tensor | None:
            if values is None:
                return None
            flat = values if values.dim() == 3 else values[..., None]
            blocks = flat.unflatten(1, (h // side, side, w // side, side))
            # places are nan where they are unknown
            mean = blocks.nanmean((2, 4)) if values is self.xyz else blocks.mean((2, 4))
            return mean.flatten(1, 2) if values.dim() == 3 else mean.flatten(1, 2)[..., 0]

        names = ("tokens", "keys", "saliency", "wide_keys", "wide_saliency", "xyz", "confidence")
        pooled = {name: pool(getattr(self, name)) for name in names}
        return replace(self, **pooled, grid=[(h // side, w // side)] * len(self.grid), cls=None)

    def stacked(self, side: int) -> Features:
        """Blocks of side x side cells of images of one size as one token each, their channels one after the other."""
        h, w = self.grid[0]
        tokens = self.tokens.unflatten(1, (h // side, side, w // side, side)).transpose(2, 3)
        return Features(tokens.flatten(3).flatten(1, 2), [(h // side, w // side)] * len(self.grid))

    def reduced(self, plan: ReductionPlan) -> Features:
        """These features after one more plan; what is aligned with the tokens goes along with their anchors."""
        whole = plan if self.plan is None else self.plan.then(plan, self.grid[0][0] * self.grid[0][1])
        index = plan.anchor.clamp(max=self.tokens.shape[1] - 1)
        aligned = {}
        for name in ("keys", "saliency", "wide_keys", "wide_saliency", "xyz", "confidence"):
            value = getattr(self, name)
            if value is not None:
                aligned[name] = value[torch.arange(len(index), device=index.device)[:, None], index]
        return replace(self, tokens=plan.apply(self.tokens), plan=whole, **aligned)


@dataclass
class Views(Movable):
    """Pictures of one sample's scene, as a geometry encoder gets them, and what is known of its cameras.

    pixels      (S,3,H,W) uint8
    image       S                 which of the batch's images shows this view; -1: none does
    intrinsics  (S,3,3) | None    pinhole, in pixels of `pixels`
    extrinsics  (S,3,4) | None    [R|t], camera-from-world, x right, y down, z forward
    depth       (S,H,W) | None    along z; 0 where nothing is known
    """

    pixels: Tensor
    image: list[int]
    intrinsics: Tensor | None = None
    extrinsics: Tensor | None = None
    depth: Tensor | None = None

    @classmethod
    def blank(cls, height: int, width: int, device: torch.device | str) -> Views:
        """One black view of nothing, of no image."""
        pixels = torch.zeros(1, 3, height, width, dtype=torch.uint8, device=device)
        eye = torch.eye(3, 4, device=device)[None]
        return cls(pixels, [-1], eye[..., :3], eye, torch.zeros(1, height, width, device=device))


@dataclass
class Batch(Movable):
    """What collation hands to the model.

    ids     (B,T) long     token ids; any valid id at image and pad positions
    labels  (B,T) long     IGNORE where not trained; labels[t] is the token AT t (the model shifts)
    layout  TokenLayout
    pixels  I x (3,H,W)    uint8, in order of row and appearance; sizes may differ
    samples                ids of the samples in it (in row order, packed ones included), for error messages and records
    views   Views each     scenes of the samples that have any
    targets float | None   what to divide the loss sum by; None: this batch's own number of targets
    """

    ids: Tensor
    labels: Tensor
    layout: TokenLayout
    pixels: list[Tensor] = field(default_factory=list)
    samples: list[str] = field(default_factory=list)
    targets: float | None = None
    views: list[Views] = field(default_factory=list)

    @property
    def supervised(self) -> int:
        """Number of positions that a loss is taken at (the first of a row predicts nothing)."""
        return int((self.labels[:, 1:] != IGNORE).sum())

    def pin_memory(self) -> Batch:
        def pin(value: Any) -> Any:
            if isinstance(value, Tensor):
                return value.pin_memory()
            if isinstance(value, list):
                return [pin(item) for item in value]
            if isinstance(value, Movable):
                return replace(value, **{f.name: pin(getattr(value, f.name)) for f in fields(value)})
            return value

        return pin(self)


@dataclass(frozen=True)
class ImageSpec:
    """How an image of any size becomes pixels, and how many tokens it then takes. Saved with the model.

    fit        "resize" (to `size`, aspect ignored), "pad" (aspect kept, centred on the mean colour),
               "crop" (shorter side fitted, centre cut), "native" (own size, each side rounded to whole cells),
               "anyres" (the whole at `size`, and crops of `size` of the image scaled to the best of `canvases`)
    size       (H,W) for all but native
    cell       pixels per token and side: the encoder's stride times the connector's merging
    limit      most pixels that "native" keeps; larger images are scaled down
    least      fewest pixels that "native" keeps; smaller images are scaled up
    canvases   (H,W) each, for anyres: whole crops high and wide
    positions  "sequence": ids count tokens; "grid": on three axes, an image's tokens have one time and their row and
               column, and what follows goes on behind the longer side (M-RoPE)
    """

    size: tuple[int, int] | None
    cell: int
    fit: str = "resize"
    limit: int = 1 << 20
    mean: Sequence[float] = (0.5, 0.5, 0.5)
    std: Sequence[float] = (0.5, 0.5, 0.5)
    least: int = 0
    canvases: Sequence[tuple[int, int]] = ()
    positions: str = "sequence"

    def __post_init__(self) -> None:
        if self.fit not in ("resize", "pad", "crop", "native", "anyres"):
            raise ValueError(f"image fit {self.fit!r} is unknown; use resize, pad, crop, native or anyres")
        if self.positions not in ("sequence", "grid"):
            raise ValueError(f"image positions {self.positions!r} are unknown; use sequence or grid")
        if bool(self.canvases) != (self.fit == "anyres"):
            count = len(self.canvases)
            raise ValueError(f"image fit {self.fit!r} with {count} canvases: anyres needs some, others take none")
        if self.fit == "anyres" and self.positions == "grid":
            raise ValueError("image fit 'anyres' with positions 'grid': crops have no common grid; use sequence")
        if (self.size is None) != (self.fit == "native"):
            raise ValueError(f"image fit {self.fit!r} with size {self.size}: native takes no size, all others need one")
        if self.size is not None and any(side % self.cell or side < self.cell for side in self.size):
            raise ValueError(
                f"image size {tuple(self.size)} is not a multiple of {self.cell} pixels per token; round it"
            )
        for canvas in self.canvases:
            if any(side % unit or side < unit for side, unit in zip(canvas, self.size)):
                raise ValueError(f"canvas {tuple(canvas)} is not whole crops of {tuple(self.size)}; correct it")
        if not 0 <= self.least <= self.limit:
            raise ValueError(f"image least {self.least} is not between 0 and the limit of {self.limit}; correct it")

    def target(self, height: int, width: int) -> tuple[int, int]:
        """Pixel size that an image of this size is brought to."""
        if self.size is not None:
            return self.size[0], self.size[1]
        cell = self.cell
        sides = [round(side / cell) * cell for side in (height, width)]
        if sides[0] * sides[1] > self.limit:
            scale = math.sqrt(height * width / self.limit)
            sides = [math.floor(side / scale / cell) * cell for side in (height, width)]
        elif sides[0] * sides[1] < self.least:
            scale = math.sqrt(self.least / (height * width))
            sides = [math.ceil(side * scale / cell) * cell for side in (height, width)]
        return max(cell, sides[0]), max(cell, sides[1])

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Token rows and columns of an image that has its target size."""
        return height // self.cell, width // self.cell


@dataclass(frozen=True)
class ViewsSpec:
    """How the views of a sample's scene become pixels.

    multiple  both sides are multiples of it: the geometry encoder's
    most      views of one scene; None: any number
    extra     tokens that a scene takes in the sequence, behind the sample's images
    size      (H,W) that all images are brought to, and views with them; None: views keep their size, rounded
    """

    multiple: int
    most: int | None = None
    extra: int = 0
    size: tuple[int, int] | None = None

    def target(self, height: int, width: int) -> tuple[int, int]:
        sides = self.size or (height, width)
        return tuple(max(1, round(side / self.multiple)) * self.multiple for side in sides)
