"""Plane sweep: how well other views agree with each view at each of some inverse depths.

Shapes: B scenes, S views, K neighbours, C channels, G groups, D planes, h,w cells of the features.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from gnomon.vlm.multiview import rays
from gnomon.vlm.multiview.precise import unmixed

_APART = 1e-4
"""Nearer than this times the longest translation, cameras have one centre: nothing can be told from between them."""


@unmixed
def neighbours(extrinsics: Tensor, valid: Tensor, most: int) -> tuple[Tensor, Tensor, Tensor]:
    """The nearest other cameras of each, (B,S,K) and which of them there are; and their mean distance (B,S), or 1.

    A camera that only turns is no other one: distances within rounding of the translations are none.
    """
    centre = rays.invert(extrinsics)[..., 3]
    # not by a product of matrices, which many cameras would get and which rounds more
    apart = torch.cdist(centre, centre, compute_mode="donot_use_mm_for_euclid_dist")
    far = extrinsics[..., 3].norm(dim=-1).masked_fill(~valid, 0).amax(1)
    alone = ~(valid[:, :, None] & valid[:, None]) | torch.eye(valid.shape[1], dtype=torch.bool, device=valid.device)
    alone = alone | (apart <= _APART * far[:, None, None])
    near, which = apart.masked_fill(alone, torch.inf).topk(min(most, valid.shape[1] - 1), largest=False)
    there = near.isfinite()
    count = there.sum(-1)
    mean = near.masked_fill(~there, 0).sum(-1) / count.clamp(min=1)
    return which, there, torch.where(mean > 0, mean, 1)


@unmixed
def agreement(
    features: Tensor, extrinsics: Tensor, intrinsics: Tensor, inverse: Tensor, *, size: tuple[int, int], groups: int,
    which: Tensor, there: Tensor,
) -> Tensor:  # fmt: skip
    """(B,S,G,D,h,w) products of features (B,S,C,h,w) with those of neighbours (B,S,K) where these see the point at
    inverse depth (B,S,D), summed over the channels of a group, mean over neighbours that see it; 0 where none does.

    size: of the pictures that the intrinsics are of.
    """
    batch, views, channels, *cells = features.shape
    scene = torch.arange(batch, device=features.device)[:, None]
    own = features.unflatten(2, (groups, -1))[:, :, :, :, None]
    # x' ~ K' (R K^-1 x + t / z)
    back = rays.centres(size, tuple(cells), intrinsics) @ torch.linalg.inv(intrinsics).mT[:, :, None]
    world = rays.invert(extrinsics)
    total, seen = 0.0, 0.0
    for k in range(which.shape[2]):
        other = which[..., k]
        move = intrinsics[scene, other] @ rays.compose(extrinsics[scene, other], world)
        along = (back @ move[..., :3].mT[:, :, None])[:, :, None]
        at = along + inverse[..., None, None, None] * move[..., 3][:, :, None, None, None]
        ahead = at[..., 2] > 1e-6
        place = at[..., :2] / at[..., 2:].clamp(min=1e-6)
        place = place / place.new_tensor([size[1], size[0]]) * 2 - 1
        found = F.grid_sample(
            features[scene, other].flatten(0, 1), place.flatten(0, 1).flatten(1, 2).clamp(-2, 2), align_corners=False
        ).view(batch, views, groups, channels // groups, -1, *cells)
        sees = (ahead & (place.abs() <= 1).all(-1) & there[..., k, None, None, None])[:, :, None].to(found.dtype)
        total = total + (own * found).sum(3) * sees
        seen = seen + sees
    if which.shape[2] == 0:
        return features.new_zeros(batch, views, groups, inverse.shape[2], *cells)
    return total / seen.clamp(min=1)
