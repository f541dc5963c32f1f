"""Known: no network at all; geometry tokens made of depth and cameras that are given with the views.

Origin:  this project, as the upper bound of what geometry tokens can tell
Rule:    token = sin and cos of 2^k pi p / extent for k < octaves, p the mean point of the patch in the first view's
         frame, and the share of its pixels that have one
Where:   in place of a geometry encoder
Differs: nothing is predicted: depth, points and cameras are those of the sample
"""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor

from gnomon.vlm.geometry.base import GeometryEncoder, GeometryInput, GeometryOutput
from gnomon.vlm.multiview import places


class Known(GeometryEncoder):
    """patch: pixels per token and side. extent: of a scene, in its own unit; points beyond it fold back."""

    metric = True
    heads = frozenset({"depth", "points", "camera"})
    reads = needs = frozenset({"intrinsics", "extrinsics", "depth"})

    def __init__(self, *, patch: int = 16, octaves: int = 6, extent: float = 16.0) -> None:
        super().__init__()
        if patch < 1 or octaves < 1 or extent <= 0:
            raise ValueError(f"patch {patch}, octaves {octaves}, extent {extent}: all must be positive; correct them")
        self.patch = self.multiple = patch
        self.octaves, self.extent = octaves, extent
        self.width = 6 * octaves + 1

    def forward(
        self, scenes: GeometryInput, *, layers: Collection[int] = (), heads: Collection[str] = ()
    ) -> GeometryOutput:
        points, there = self._points(scenes)
        grid = tuple(side // self.patch for side in points.shape[2:4])
        tokens = places.tokens(points, there, grid=grid, octaves=self.octaves, extent=self.extent)
        tokens = scenes.present(tokens)
        output = GeometryOutput(tokens, grid, scenes.valid, layers=dict.fromkeys(layers, tokens))
        output.scale = torch.ones(len(tokens), device=tokens.device)
        if "depth" in heads:
            output.depth, output.depth_confidence = scenes.depth, there.to(points.dtype)
        if "points" in heads:
            output.points, output.points_confidence = points, there.to(points.dtype)
        if "camera" in heads:
            output.extrinsics, output.intrinsics = scenes.extrinsics, scenes.intrinsics
        return output

    def _points(self, scenes: GeometryInput) -> tuple[Tensor, Tensor]:
        """(B,S,H,W,3) in the first view's frame, and (B,S,H,W) which are known."""
        valid = scenes.valid[..., None, None]
        there = valid & (scenes.depth > 0) & scenes.depth.isfinite()
        # what is padded has no camera and may hold anything
        lens = torch.where(valid, scenes.intrinsics, torch.eye(3, device=valid.device))
        first = scenes.valid.to(torch.uint8).argmax(1)
        points = places.in_view(scenes.extrinsics, lens, scenes.depth.masked_fill(~there, 0), first)
        return points.masked_fill(~there[..., None], 0), there
