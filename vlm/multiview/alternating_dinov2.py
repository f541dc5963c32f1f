"""AlternatingDINOv2: a plain DINOv2 whose later blocks look across views in turns, as Depth Anything 3 has it.

Shapes: B scenes, S views, N patches, C width.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor, nn

from gnomon.vlm.multiview.cross import CrossView, ViewLayout
from gnomon.vlm.multiview.dinov2 import DINOv2
from gnomon.vlm.multiview.reference import choose
from gnomon.vlm.multiview.rope2d import positions, tables


class AlternatingDINOv2(DINOv2):
    """alternate_from: the first block of those that have 2-D RoPE and normed queries and keys; from it on, odd blocks
    attend across views, and the class token is a camera token. None: each view is seen alone.
    """

    def __init__(
        self, width: int, depth: int, heads: int, *, alternate_from: int | None, trained_at: int, swiglu: bool
    ) -> None:
        super().__init__(
            width,
            depth,
            heads,
            trained_at=trained_at,
            registers=0,
            mask_token=False,
            offset=0.1,
            swiglu=swiglu,
            qk_norm_from=alternate_from,
            norm_eps=1e-5,
        )
        self.alternate_from = alternate_from
        self.head_width = width // heads
        if alternate_from is not None:
            self.camera_token = nn.Parameter(torch.randn(1, 2, width))

    def forward(
        self,
        images: Tensor,
        layout: ViewLayout,
        *,
        layers: Collection[int],
        cross: CrossView,
        memory: Any,
        reference: str,
        camera: Tensor | None,
    ) -> tuple[dict[int, tuple[Tensor, Tensor]], Any]:
        """Of each layer asked for, (B,S,1+N,C) after the last block within views and after its own.

        camera: (B,S,C) in place of the learned tokens for the reference view and the others.
        """
        x = self.embed(images.flatten(0, 1)).unflatten(0, images.shape[:2])
        start = len(self.blocks) if self.alternate_from is None else self.alternate_from
        places = positions(layout.grid, 1, x.device)
        within = tables(places, self.head_width)
        # across views, patches are told from special tokens alone
        whole = tables(places.clamp(max=1).repeat(layout.views, 1), self.head_width)
        first, found, local, carried = None, {}, x, memory
        for index, block in enumerate(self.blocks):
            if index == start - 1 and memory is None:
                first = choose(reference, layout.valid, x[:, :, 0])
            if index == start:
                token = self._camera(layout.valid, first) if camera is None else camera.to(x.dtype)
                x = torch.cat([token[:, :, None], x[:, :, 1:]], dim=2)
                carried = cross.begin(x[:, :, 1:], layout, memory)
            if index >= start and index % 2:
                attend = cross.at((index - start) // 2, layout, carried)
                x = block(x.flatten(1, 2), rope=whole, attend=attend).view(x.shape)
            else:
                rope = within if index >= start else None
                local = x = block(x.flatten(0, 1), rope=rope).view(x.shape)
            if index in layers:
                found[index] = (local, x)
        return found, carried

    def _camera(self, valid: Tensor, first: Tensor | None) -> Tensor:
        """(B,S,C): the first of the pair for the reference view, the second for the others."""
        which = torch.ones_like(valid, dtype=torch.long)
        if first is not None:
            which.scatter_(1, first[:, None], 0)
        return self.camera_token[0, which]

    def normed(self, states: tuple[Tensor, Tensor]) -> Tensor:
        local, x = states
        return self.norm(x) if self.alternate_from is None else torch.cat([local, self.norm(x)], dim=-1)
