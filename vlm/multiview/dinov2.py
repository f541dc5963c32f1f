"""DINOv2's vision transformer under the names of its published weights, with positions for any grid.

Shapes: I pictures, H,W pixels, h,w grid, N patches, R registers, C width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gnomon.vlm.multiview.block import Block
from gnomon.vlm.multiview.patches import PatchEmbed
from gnomon.vlm.multiview.vectors import widen


class DINOv2(nn.Module):
    """trained_at: side of the pictures whose grid the learned positions have.

    offset: 0: positions are resampled to the grid, smoothed where it is coarser. Above 0: by the ratio of the sides
    with this added to the grid's, and not smoothed, as the first release of DINOv2 does.
    qk_norm_from: the first block with normed queries and keys; None: none has them.
    """

    def __init__(
        self,
        width: int,
        depth: int,
        heads: int,
        *,
        patch: int = 14,
        trained_at: int = 518,
        registers: int = 4,
        mask_token: bool = True,
        offset: float = 0.0,
        swiglu: bool = False,
        qk_norm_from: int | None = None,
        norm_eps: float = 1e-6,
    ) -> None:
        super().__init__()
        self.patch, self.offset = patch, offset
        self.patch_embed = PatchEmbed(width, patch)
        self.cls_token = nn.Parameter(1e-6 * torch.randn(1, 1, width))
        self.pos_embed = nn.Parameter(0.02 * torch.randn(1, 1 + (trained_at // patch) ** 2, width))
        self.register_tokens = nn.Parameter(1e-6 * torch.randn(1, registers, width)) if registers else None
        if mask_token:
            # part of the published weights; nothing here masks a patch
            self.register_parameter("mask_token", nn.Parameter(torch.zeros(1, width), requires_grad=False))
        self.blocks = nn.ModuleList(
            Block(
                width,
                heads,
                qk_norm=qk_norm_from is not None and index >= qk_norm_from,
                scale=1.0,
                eps=1e-6,
                swiglu=swiglu,
            )
            for index in range(depth)
        )
        self.norm = nn.LayerNorm(width, eps=norm_eps)

    @property
    def special(self) -> int:
        """Tokens before the patches: the class token and the registers."""
        return 1 + (0 if self.register_tokens is None else self.register_tokens.shape[1])

    def forward(self, pixels: Tensor) -> Tensor:
        """(I,3,H,W), normalised, to the patches' last states (I,N,C)."""
        x = self.embed(pixels)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)[:, self.special :]

    def embed(self, pixels: Tensor) -> Tensor:
        """(I,1+R+N,C) before the first block."""
        patches = self.patch_embed(pixels)
        places = self.positions(pixels.shape[2] // self.patch, pixels.shape[3] // self.patch).to(patches.dtype)
        first = (self.cls_token + places[:, :1]).expand(len(patches), -1, -1)
        parts = [first, patches + places[:, 1:]]
        if self.register_tokens is not None:
            parts.insert(1, self.register_tokens.expand(len(patches), -1, -1))
        return torch.cat(parts, dim=1)

    def positions(self, h: int, w: int) -> Tensor:
        """(1,1+N,C)"""
        side = round((self.pos_embed.shape[1] - 1) ** 0.5)
        if h == w == side:
            return self.pos_embed
        learned = widen(self.pos_embed)
        cells = learned[:, 1:].unflatten(1, (side, side)).permute(0, 3, 1, 2)
        if self.offset:
            factor = ((h + self.offset) / side, (w + self.offset) / side)
            cells = F.interpolate(cells, scale_factor=factor, mode="bicubic")
        else:
            cells = F.interpolate(cells, size=(h, w), mode="bicubic", antialias=True)
        assert cells.shape[2:] == (h, w)
        return torch.cat([learned[:, :1], cells.flatten(2).mT], dim=1)
