"""Tokens that say where the points of a patch are.

Shapes: B scenes, S views, H,W pixels, h,w grid.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from gnomon.vlm.multiview import rays
from gnomon.vlm.multiview.align import pool


def tokens(points: Tensor, weight: Tensor, *, grid: tuple[int, int], octaves: int, extent: float) -> Tensor:
    """(B,S,h*w,6*octaves+1) of points (B,S,H,W,3) that count as much as `weight` (B,S,H,W) says.

    sin and cos of 2^k pi p / extent for k < octaves, p the mean point of the patch, and the mean weight; zeros where
    that is 0. Points beyond `extent` fold back.
    """
    size = tuple(points.shape[2:4])
    flat, weight = points.flatten(0, 1).flatten(1, 2), weight.flatten(0, 1).flatten(1).to(points.dtype)
    place = pool(flat, size, grid, weight)
    share = pool(weight[..., None], size, grid)
    angles = place[..., None] * (math.pi / extent) * 2.0 ** torch.arange(octaves, device=place.device)
    known = (share > 0).to(place.dtype)
    waves = angles.sin().flatten(-2) * known, angles.cos().flatten(-2) * known
    return torch.cat([*waves, share], -1).unflatten(0, points.shape[:2])


def in_view(extrinsics: Tensor, intrinsics: Tensor, depth: Tensor, reference: Tensor) -> Tensor:
    """(B,S,H,W,3) the points at `depth`, in the frame of each scene's view `reference` (B,)."""
    world = rays.points(rays.from_cameras(extrinsics, intrinsics, size=tuple(depth.shape[2:])), depth)
    return rays.moved(world, extrinsics[torch.arange(len(extrinsics), device=reference.device), reference][:, None])
