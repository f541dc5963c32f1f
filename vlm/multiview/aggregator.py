"""Aggregator: tokens of several views attend within their view and across all views, in turns.

Shapes: B scenes, S views, P special tokens, N patches, T = P + N, C width.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor, nn

from gnomon.vlm.multiview.block import Block
from gnomon.vlm.multiview.cross import CrossView, ViewLayout
from gnomon.vlm.multiview.rope2d import positions, tables


class Aggregator(nn.Module):
    """patch_embed turns normalised pictures (B*S,3,H,W) into patches (B*S,N,C).

    The first view that is there has special tokens of its own, all others share theirs; nothing else orders views.
    A pass that continues an earlier one has no first view.
    """

    def __init__(
        self,
        patch_embed: nn.Module,
        *,
        width: int,
        depth: int,
        heads: int,
        registers: int = 4,
        scale: float = 0.01,
    ) -> None:
        super().__init__()
        self.patch_embed = patch_embed
        self.frame_blocks = nn.ModuleList(Block(width, heads, scale=scale) for _ in range(depth))
        self.global_blocks = nn.ModuleList(Block(width, heads, scale=scale) for _ in range(depth))
        self.camera_token = nn.Parameter(1e-6 * torch.randn(1, 2, 1, width))
        self.register_token = nn.Parameter(1e-6 * torch.randn(1, 2, registers, width))
        self.head_width = width // heads

    @property
    def special(self) -> int:
        return 1 + self.register_token.shape[2]

    def forward(
        self,
        images: Tensor,
        layout: ViewLayout,
        *,
        layers: Collection[int],
        cross: CrossView,
        memory: Any = None,
    ) -> tuple[dict[int, Tensor], Any]:
        """Of each layer asked for (B,S,T,2C): what its frame block puts out beside what its global block does."""
        patches = self.patch_embed(images.flatten(0, 1)).unflatten(0, images.shape[:2])
        first = torch.zeros_like(layout.valid)
        if memory is None:
            first.scatter_(1, layout.valid.int().argmax(1, keepdim=True), True)
        memory = cross.begin(patches, layout, memory)
        tokens = torch.cat([self._special(first), patches], dim=2)
        rope = tables(positions(layout.grid, layout.special, tokens.device), self.head_width)
        whole = (rope[0].repeat(layout.views, 1), rope[1].repeat(layout.views, 1))
        found, flat = {}, tokens.flatten(0, 1)
        for index, (frame, across) in enumerate(zip(self.frame_blocks, self.global_blocks)):
            within = frame(flat, rope=rope).view(tokens.shape)
            every = across(within.flatten(1, 2), rope=whole, attend=cross.at(index, layout, memory)).view(tokens.shape)
            flat = every.flatten(0, 1)
            if index in layers:
                found[index] = torch.cat([within, every], dim=-1)
        return found, memory

    def _special(self, first: Tensor) -> Tensor:
        """(B,S,P,C)"""
        pair = torch.cat([self.camera_token, self.register_token], dim=2)[0]
        return pair[(~first).long()]
