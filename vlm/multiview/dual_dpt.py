"""DualDPT: one set of levels, one chain of fusion for depth and one for rays, as Depth Anything 3 has it.

Shapes: B scenes, S views, I pictures, H,W pixels, h,w grid.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from gnomon.vlm.multiview.dpt import DPT

RAY = 7
"""Direction, origin, and how sure it is."""


class DualDPT(DPT):
    """The weights have an exit for rays at each of the four levels; the finest one alone is read."""

    def __init__(self, width: int, *, patch: int, features: int, channels: Sequence[int]) -> None:
        super().__init__(width, 2, patch=patch, features=features, channels=channels, rectified=False)
        self.add_fusion(features, rectified=False, suffix="_aux")
        self.scratch.output_conv1_aux = nn.ModuleList(_neck(features) for _ in range(4))
        # one norm for all levels, as in the weights
        norm = nn.LayerNorm(32)
        self.scratch.output_conv2_aux = nn.ModuleList(_exit(features, norm) for _ in range(4))

    def forward(self, *layers: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """(B,S,H,W,2) and (B,S,8h,8w,7)."""
        whole = [tokens.flatten(0, 1).split(self.chunk) for tokens in layers]
        levels = [self.levels(chunk, size) for chunk in zip(*whole)]
        dense = torch.cat([self.pixels(part, size) for part in levels])
        rays = torch.cat([self.rays(part, size) for part in levels])
        return tuple(found.unflatten(0, layers[0].shape[:2]) for found in (dense, rays))

    def rays(self, levels: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
        """(I,8h,8w,7)"""
        fused = self.scratch.output_conv1_aux[-1](self.fuse(levels, "_aux"))
        return self.scratch.output_conv2_aux[-1](self.placed(fused, size)).movedim(1, -1)


class Permute(nn.Module):
    def __init__(self, *order: int) -> None:
        super().__init__()
        self.order = order

    def forward(self, x: Tensor) -> Tensor:
        return x.permute(self.order)


def _neck(features: int) -> nn.Sequential:
    """Five convolutions between two widths, without anything in between."""
    narrow = features // 2
    pairs = [(features, narrow), (narrow, features)] * 2 + [(features, narrow)]
    return nn.Sequential(*(nn.Conv2d(before, after, 3, padding=1) for before, after in pairs))


def _exit(features: int, norm: nn.LayerNorm) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(features // 2, 32, 3, padding=1),
        Permute(0, 2, 3, 1),
        norm,
        Permute(0, 3, 1, 2),
        nn.ReLU(),
        nn.Conv2d(32, RAY, 1),
    )
