"""DPT: dense predictions from the tokens of four layers, coarse to fine.

Modules carry the names of the weights that VGGT and Depth Anything 3 publish.

Shapes: B scenes, S views, I = B*S pictures, H,W pixels, h,w grid, N = h*w, F features.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def uv_embedding(grid: tuple[int, int], width: int, *, size: tuple[int, int], device: torch.device | str) -> Tensor:
    """(width,h,w): sines and cosines of where each cell's centre is; first half of the channels x, the other y.

    The picture's half diagonal is the unit, so that both axes of a picture of any shape count alike.
    """
    h, w = grid
    diagonal = (size[0] ** 2 + size[1] ** 2) ** 0.5
    spans = [size[1] / diagonal * (w - 1) / w, size[0] / diagonal * (h - 1) / h]
    x, y = (torch.linspace(-span, span, n, device=device, dtype=torch.float64) for span, n in zip(spans, (w, h)))
    quarter = width // 4
    frequency = 100.0 ** (-torch.arange(quarter, device=device, dtype=torch.float64) / quarter)

    def waves(at: Tensor) -> Tensor:
        angle = frequency[:, None] * at
        return torch.cat([angle.sin(), angle.cos()])

    across, down = waves(x)[:, None, :].expand(-1, h, -1), waves(y)[:, :, None].expand(-1, -1, w)
    return torch.cat([across, down]).float()


def checked(taps: Sequence[int], depth: int, *, name: str) -> tuple[int, ...]:
    """The layers that DPT reads of a network of `depth`; a ValueError for others than four that there are."""
    if len(taps) != 4 or not all(0 <= tap < depth for tap in taps):
        raise ValueError(f"{name} has taps {list(taps)} of {depth} layers; give four layers of 0 to {depth - 1}")
    return tuple(taps)


class ResidualUnit(nn.Module):
    """rectified: what is added back has passed the first ReLU, as where that worked in place."""

    def __init__(self, features: int, *, rectified: bool) -> None:
        super().__init__()
        self.rectified = rectified
        self.conv1 = nn.Conv2d(features, features, 3, padding=1)
        self.conv2 = nn.Conv2d(features, features, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        active = x.relu()
        return self.conv2(self.conv1(active).relu()) + (active if self.rectified else x)


class Fusion(nn.Module):
    """One step up: adds the finer level, refines, doubles the resolution or brings it to `size`."""

    def __init__(self, features: int, *, lateral: bool, rectified: bool) -> None:
        super().__init__()
        if lateral:
            self.resConfUnit1 = ResidualUnit(features, rectified=rectified)
        self.resConfUnit2 = ResidualUnit(features, rectified=rectified)
        self.out_conv = nn.Conv2d(features, features, 1)

    def forward(self, x: Tensor, lateral: Tensor | None = None, *, size: Sequence[int] | None = None) -> Tensor:
        if lateral is not None:
            x = x + self.resConfUnit1(lateral)
        size = size or [2 * side for side in x.shape[2:]]
        return self.out_conv(F.interpolate(self.resConfUnit2(x), size=size, mode="bilinear", align_corners=True))


class DPT(nn.Module):
    """width: of the tokens. channels: of the four levels, fine to coarse. out: channels per pixel.

    uv: positions are added to each level and before the last convolutions. normed: tokens pass a LayerNorm first.
    rectified: see ResidualUnit. chunk: pictures at a time, so that memory does not grow with the number of views.
    """

    def __init__(
        self,
        width: int,
        out: int,
        *,
        patch: int = 14,
        features: int = 256,
        channels: Sequence[int] = (256, 512, 1024, 1024),
        uv: bool = True,
        normed: bool = True,
        rectified: bool = True,
        chunk: int = 8,
    ) -> None:
        super().__init__()
        self.patch, self.uv, self.chunk = patch, uv, chunk
        self.norm = nn.LayerNorm(width) if normed else nn.Identity()
        self.projects = nn.ModuleList(nn.Conv2d(width, c, 1) for c in channels)
        fine, next_fine, _, coarse = channels
        self.resize_layers = nn.ModuleList(
            [
                nn.ConvTranspose2d(fine, fine, 4, stride=4),
                nn.ConvTranspose2d(next_fine, next_fine, 2, stride=2),
                nn.Identity(),
                nn.Conv2d(coarse, coarse, 3, stride=2, padding=1),
            ]
        )
        self.scratch = nn.Module()
        for level, c in enumerate(channels, 1):
            setattr(self.scratch, f"layer{level}_rn", nn.Conv2d(c, features, 3, padding=1, bias=False))
        self.add_fusion(features, rectified=rectified)
        self.scratch.output_conv1 = nn.Conv2d(features, features // 2, 3, padding=1)
        self.scratch.output_conv2 = last_convolutions(features, out)

    def add_fusion(self, features: int, *, rectified: bool, suffix: str = "") -> None:
        for level in (1, 2, 3, 4):
            step = Fusion(features, lateral=level < 4, rectified=rectified)
            setattr(self.scratch, f"refinenet{level}{suffix}", step)

    def forward(self, *layers: Tensor, size: tuple[int, int]) -> Tensor:
        """(B,S,N,width) of four layers, the lowest first, to (B,S,H,W,out)."""
        assert len(layers) == 4, f"DPT reads four layers, not {len(layers)}"
        whole = [tokens.flatten(0, 1).split(self.chunk) for tokens in layers]
        parts = [self.pixels(self.levels(chunk, size), size) for chunk in zip(*whole)]
        return torch.cat(parts).unflatten(0, layers[0].shape[:2])

    def levels(self, layers: Sequence[Tensor], size: tuple[int, int]) -> list[Tensor]:
        """(I,N,width) of each layer to (I,F,...) at four, two, one and half times the grid's resolution."""
        grid = (size[0] // self.patch, size[1] // self.patch)
        found = []
        for level, (tokens, project, resize) in enumerate(zip(layers, self.projects, self.resize_layers), 1):
            cells = project(self.norm(tokens).mT.unflatten(2, grid))
            found.append(getattr(self.scratch, f"layer{level}_rn")(resize(self.placed(cells, size))))
        return found

    def fuse(self, levels: Sequence[Tensor], suffix: str = "") -> Tensor:
        """From the coarsest level to twice the finest one's resolution."""
        x = None
        for level in (4, 3, 2, 1):
            step = getattr(self.scratch, f"refinenet{level}{suffix}")
            size = levels[level - 2].shape[2:] if level > 1 else None
            x = step(levels[3], size=size) if x is None else step(x, levels[level - 1], size=size)
        return x

    def pixels(self, levels: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
        """(I,H,W,out)"""
        return self.scratch.output_conv2(self.full(levels, size)).movedim(1, -1)

    def full(self, levels: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
        """(I,F/2,H,W): what the last convolutions read."""
        fused = self.scratch.output_conv1(self.fuse(levels))
        return self.placed(F.interpolate(fused, size=size, mode="bilinear", align_corners=True), size)

    def placed(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        if not self.uv:
            return x
        return x + 0.1 * uv_embedding(tuple(x.shape[2:]), x.shape[1], size=size, device=x.device).to(x.dtype)


def last_convolutions(features: int, out: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(features // 2, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, out, 1))
