"""Targets in VGGT's frame: the first camera's, with the mean distance of the scene's points as the unit."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gnomon.vlm.multiview.vectors import length, widen


@dataclass(frozen=True)
class Targets:
    """Of B samples with S views; metric = scale * target."""

    extrinsics: Tensor
    points: Tensor
    depth: Tensor
    scale: Tensor

    def times(self, factor: Tensor) -> Targets:
        """The same in a unit that is smaller by `factor` (B,)."""
        per_view, per_pixel = factor[:, None, None, None], factor[:, None, None, None, None]
        extrinsics = torch.cat([self.extrinsics[..., :3], self.extrinsics[..., 3:] * per_view], dim=-1)
        return Targets(extrinsics, self.points * per_pixel, self.depth * per_view, self.scale / factor)


def mean_distance(points: Tensor, mask: Tensor) -> Tensor:
    """(B,) of points (B,S,H,W,3) from the origin, within 1e-6 and 1e6; 1 for a sample without a valid point."""
    apart = length(torch.where(mask[..., None], widen(points), 0)).flatten(1).sum(-1)
    count = mask.flatten(1).sum(-1)
    return torch.where(count > 0, (apart / count.clamp(min=1)).clamp(1e-6, 1e6), 1)


def normalise(extrinsics: Tensor, points: Tensor, depth: Tensor, mask: Tensor) -> Targets:
    """Of world points (B,S,H,W,3), depth (B,S,H,W) and cameras (B,S,3,4); points and depth become 0 where invalid."""
    extrinsics, points, depth = widen(extrinsics), widen(points), widen(depth)
    rotation, translation = extrinsics[:, :1, :, :3], extrinsics[:, :1, :, 3:]
    # sums of products: autocast would do a matrix product in half precision
    turned = (extrinsics[..., :3, None, :3] * rotation[..., None, :, :]).sum(-1)
    shift = extrinsics[..., 3:] - (turned * translation.mT).sum(-1, keepdim=True)
    there = (rotation[:, :, None, None] * points[..., None, :]).sum(-1) + translation[:, :, None, None, :, 0]
    there = torch.where(mask[..., None], there, 0)
    scale = mean_distance(there, mask)
    per_view, per_pixel = scale[:, None, None, None], scale[:, None, None, None, None]
    return Targets(
        extrinsics=torch.cat([turned, shift / per_view], dim=-1),
        points=there / per_pixel,
        depth=torch.where(mask, depth, 0) / per_view,
        scale=scale,
    )
