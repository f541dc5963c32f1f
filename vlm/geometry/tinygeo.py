"""TinyGeo: VGGT's structure small enough to train on a CPU.

Origin:  this project; the structure is that of VGGT, arXiv:2503.11651
Rule:    patches by one convolution, sines of row and column added, a camera token and 4 registers per view; blocks
         attend within a view and across views in turns (2-D RoPE, normed queries and keys); tokens = what the last
         frame and global block put out, side by side. Depth = exp, points = sign(y) (e^|y| - 1), confidence = 1 + exp;
         camera in one round of an MLP
Where:   the geometry encoder
Differs: from VGGT: sines in place of DINOv2 and its learned positions, LayerScale begins at 0.1, dense heads are one
         linear map to pixels and two convolutions, and the camera begins at the identity
"""

from __future__ import annotations

import math
from collections.abc import Collection
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gnomon.vlm.multiview import activate
from gnomon.vlm.multiview.aggregator import Aggregator
from gnomon.vlm.multiview.alternating import AlternatingEncoder
from gnomon.vlm.multiview.cross import CrossView
from gnomon.vlm.multiview.patches import PatchEmbed

# Width, attention heads, layers
_SIZES = {"xs": (128, 2, 3), "s": (192, 3, 4)}
_PATCH = 8


class TinyGeo(AlternatingEncoder):
    """size: xs (1.2 M parameters, made for 64x64 pixels) or s (3.6 M, 112x112); heads come on top.

    heads: those of depth, points and camera that it has. weights: a file or directory that holds its state.
    """

    def __init__(
        self,
        size: str = "xs",
        *,
        heads: Collection[str] = ("depth", "points", "camera"),
        weights: str | None = None,
        frozen: bool = True,
        cross: CrossView | dict[str, Any] | None = None,
    ) -> None:
        if size not in _SIZES:
            raise ValueError(f"TinyGeo comes in sizes {', '.join(_SIZES)}, not {size!r}; choose one of them")
        width, attention_heads, depth = _SIZES[size]
        super().__init__(
            Aggregator(_PlacedPatches(width, _PATCH), width=width, depth=depth, heads=attention_heads, scale=0.1),
            patch=_PATCH,
            taps=(depth - 1,),
            heads=heads,
            depth_head=partial(_PixelHead, 2 * width, 2),
            point_head=partial(_PixelHead, 2 * width, 4),
            camera_head=partial(_CameraMLP, 2 * width),
            cross=cross,
        )
        if weights is not None:
            self.fill(weights)
        self.freeze(frozen)


class _PlacedPatches(PatchEmbed):
    """RoPE tells how far apart two tokens are, and what is read from a token elsewhere must tell where that is."""

    def forward(self, pixels: Tensor) -> Tensor:
        patches = self.proj(pixels)
        # from half a period across the picture to eight
        waves = math.pi * torch.logspace(0, 4, patches.shape[1] // 4, base=2, device=patches.device)
        rows, columns = ((torch.arange(count, device=waves.device) + 0.5) / count for count in patches.shape[2:])
        rows, columns = torch.outer(rows, waves)[:, None], torch.outer(columns, waves)[None]
        place = torch.cat(torch.broadcast_tensors(rows.sin(), rows.cos(), columns.sin(), columns.cos()), -1)
        return patches.flatten(2).mT + place.flatten(0, 1).to(patches.dtype)


class _PixelHead(nn.Module):
    """(B,S,N,C) to (B,S,H,W,out): each token its square of pixels, and two convolutions across the seams."""

    def __init__(self, width: int, out: int, *, hidden: int = 16) -> None:
        super().__init__()
        self.spread = nn.Linear(width, _PATCH**2 * hidden)
        self.smooth = nn.Conv2d(hidden, hidden, 3, padding=1)
        self.out = nn.Conv2d(hidden, out, 3, padding=1)

    def forward(self, tokens: Tensor, *, size: tuple[int, int]) -> Tensor:
        cells = self.spread(tokens).flatten(0, 1).mT.unflatten(2, (size[0] // _PATCH, size[1] // _PATCH))
        pixels = self.out(F.relu(self.smooth(F.pixel_shuffle(cells, _PATCH))))
        return pixels.movedim(1, -1).unflatten(0, tokens.shape[:2])


class _CameraMLP(nn.Module):
    """(B,S,C) to (1,B,S,9): translation, quaternion and fields of view in one round."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(width, width // 2)
        self.out = nn.Linear(width // 2, 9)
        with torch.no_grad():
            # no turn and one radian: away from a zero quaternion and from where a field of view has no gradient
            self.out.bias.copy_(torch.tensor([0, 0, 0, 0, 0, 0, 1, 1, 1.0]))

    def forward(self, camera: Tensor, *, valid: Tensor) -> Tensor:
        return activate.camera(self.out(F.gelu(self.hidden(camera))))[None]
