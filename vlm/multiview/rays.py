"""Rays: what each pixel of a known camera looks along, the points at some depth on them, and the camera behind them.

Shapes: H,W pixels of a picture, h,w rays, ... views.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gnomon.vlm.multiview.precise import unmixed
from gnomon.vlm.multiview.vectors import widen

Size = tuple[int, int]


def centres(size: Size, grid: Size, like: Tensor) -> Tensor:
    """(h,w,3): x, y, 1 of the centres of a grid's cells, in pixels of a picture of this size."""
    y, x = ((torch.arange(n, device=like.device) + 0.5) * (side / n) for n, side in zip(grid, size))
    return torch.stack([*torch.meshgrid(x, y, indexing="xy"), torch.ones(grid, device=like.device)], dim=-1).to(like)


@unmixed
def from_cameras(extrinsics: Tensor, intrinsics: Tensor, *, size: Size, grid: Size | None = None) -> Tensor:
    """(...,h,w,6): direction, as long as one unit of depth, and origin, in the world of extrinsics (...,3,4)."""
    extrinsics, intrinsics = widen(extrinsics), widen(intrinsics)
    rotation, shift = extrinsics[..., :3], extrinsics[..., 3:]
    pixels = centres(size, grid or size, intrinsics)
    # a row vector times the transpose of R^T K^-1
    directions = torch.einsum("hwj,...ij->...hwi", pixels, rotation.mT @ torch.linalg.inv(intrinsics))
    origin = (-rotation.mT @ shift)[..., None, None, :, 0]
    return torch.cat([directions, origin.expand_as(directions)], dim=-1)


def points(rays: Tensor, depth: Tensor) -> Tensor:
    """(...,h,w,3) in the rays' world, at depth (...,h,w) along z."""
    return rays[..., 3:] + depth[..., None] * rays[..., :3]


def to_cameras(rays: Tensor, confidence: Tensor, *, size: Size) -> tuple[Tensor, Tensor]:
    """Extrinsics (...,3,4) and intrinsics (...,3,3) in pixels of a picture of this size.

    With pixels p and directions d, d x A p = 0 has A = R^T K^-1 as its weighted least-squares solution; QR parts it.
    The origin is the weighted mean. Directions may have any length.
    """
    lead, grid = rays.shape[:-3], tuple(rays.shape[-3:-1])
    # near-singular normal equations, and nothing here is large
    rays, weight = rays.double().flatten(0, -4), confidence.double().flatten(0, -3)
    rays, weight = rays.flatten(1, 2), weight.flatten(1)
    scale = max(size) / 2
    # pixels of about unit size, or the equations are badly scaled
    shift = rays.new_tensor([[1 / scale, 0, -size[1] / 2 / scale], [0, 1 / scale, -size[0] / 2 / scale], [0, 0, 1]])
    pixels = centres(size, grid, rays).flatten(0, 1) @ shift.T
    direction = torch.nn.functional.normalize(rays[..., :3], dim=-1)
    x, y, z = direction.unbind(-1)
    o = torch.zeros_like(x)
    crossing = torch.stack([o, -z, y, z, o, -x, -y, x, o], dim=-1).unflatten(-1, (3, 3))
    rows = torch.einsum("vnij,nk->vnijk", crossing, pixels).flatten(-2)
    normal = torch.einsum("vnia,vnib,vn->vab", rows, rows, weight / weight.sum(1, keepdim=True))
    map_ = torch.linalg.eigh(normal)[1][..., 0].unflatten(-1, (3, 3))
    map_ = map_ * torch.linalg.det(map_).sign()[:, None, None]
    turn, upper = torch.linalg.qr(map_ @ shift)
    sign = upper.diagonal(dim1=-2, dim2=-1).sign()
    turn, upper = turn * sign[:, None], upper * sign[..., None]
    intrinsics = torch.linalg.inv(upper / upper[:, 2:, 2:])
    origin = (rays[..., 3:] * weight[..., None]).sum(1) / weight.sum(1, keepdim=True)
    extrinsics = torch.cat([turn.mT, -turn.mT @ origin[..., None]], dim=-1)
    return extrinsics.float().unflatten(0, lead), intrinsics.float().unflatten(0, lead)


@unmixed
def invert(cameras: Tensor) -> Tensor:
    """World-from-camera of camera-from-world (...,3,4), and the other way round."""
    turned = cameras[..., :3].mT
    return torch.cat([turned, -turned @ cameras[..., 3:]], dim=-1)


@unmixed
def compose(second: Tensor, first: Tensor) -> Tensor:
    """(...,3,4) that does what `first` does and then what `second` does."""
    turn, shift = second[..., :3], second[..., 3:]
    return torch.cat([turn @ first[..., :3], turn @ first[..., 3:] + shift], dim=-1)


@unmixed
def moved(points: Tensor, cameras: Tensor) -> Tensor:
    """Points (...,h,w,3) in the frames that cameras (...,3,4) bring them to."""
    turned = torch.einsum("...ij,...hwj->...hwi", cameras[..., :3], points)
    return turned + cameras[..., None, None, :, 3]
