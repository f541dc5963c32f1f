"""Scenes one by one, without the views that they lack: for methods whose choices depend on how many views there are."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from gnomon.vlm.multiview.cross import CrossView, ViewLayout


class SceneByScene(CrossView):
    """Members implement `scene`; a memory, where they have one, is a list of one per scene."""

    def scene(
        self, x: Tensor, q: Tensor, k: Tensor, v: Tensor, *, layer: int, layout: ViewLayout, memory: Any
    ) -> Tensor:
        """`attend` for one scene whose views are all there."""
        raise NotImplementedError

    def attend(
        self, x: Tensor, q: Tensor, k: Tensor, v: Tensor, *, layer: int, layout: ViewLayout, memory: Any
    ) -> Tensor:
        o = torch.zeros_like(q)
        for row, valid in enumerate(layout.valid):
            if not valid.any():
                continue
            # slices, not copies, where no view is missing
            here = slice(None) if valid.all() else valid.repeat_interleave(layout.length).nonzero()[:, 0]
            one = slice(row, row + 1)
            o[one, :, here] = self.scene(
                x[one, here],
                *(part[one, :, here] for part in (q, k, v)),
                layer=layer,
                layout=replace(layout, valid=valid[valid][None]),
                memory=None if memory is None else memory[row],
            )
        return o
