"""Pose encoding: a camera as nine numbers, the way VGGT predicts it.

[t (3), quaternion (4, scalar last), vertical and horizontal field of view]. Extrinsics [R|t] are camera-from-world;
the principal point is taken to be the centre of the image, so a camera whose is elsewhere comes back centred.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gnomon.vlm.heads.quaternion import Quaternion
from gnomon.vlm.multiview.vectors import widen

SIZE = 9
_ROTATION = Quaternion()
# A head may put out any number; half a field of view is read within these, so that focal lengths are finite.
_HALF = (1e-4, torch.pi / 2 - 1e-4)


def encode(extrinsics: Tensor, intrinsics: Tensor, *, size: tuple[int, int]) -> Tensor:
    """(...,9) of cameras (...,3,4) and (...,3,3) whose images are `size` (height, width) pixels."""
    if extrinsics.shape[-2:] != (3, 4) or intrinsics.shape[-2:] != (3, 3):
        raise ValueError(
            f"cameras have shapes {tuple(extrinsics.shape)} and {tuple(intrinsics.shape)}; "
            "give extrinsics (..., 3, 4) and intrinsics (..., 3, 3)"
        )
    extrinsics, intrinsics = widen(extrinsics), widen(intrinsics)
    focal = torch.stack([intrinsics[..., 1, 1], intrinsics[..., 0, 0]], dim=-1)
    fov = 2 * torch.atan(focal.new_tensor(size) / 2 / focal)
    return torch.cat([extrinsics[..., 3], _ROTATION.from_matrix(extrinsics[..., :3]), fov], dim=-1)


def decode(encoding: Tensor, *, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Extrinsics (...,3,4) and intrinsics (...,3,3); the quaternion need not be of length 1."""
    if encoding.shape[-1] != SIZE:
        raise ValueError(f"a pose encoding has {SIZE} numbers, not {encoding.shape[-1]}; give (..., {SIZE})")
    encoding = widen(encoding)
    extrinsics = torch.cat([_ROTATION.to_matrix(encoding[..., 3:7]), encoding[..., :3, None]], dim=-1)
    half = encoding.new_tensor(size) / 2
    focal_y, focal_x = (half / torch.tan((encoding[..., 7:] / 2).clamp(*_HALF))).unbind(-1)
    nothing, one = torch.zeros_like(focal_x), torch.ones_like(focal_x)
    rows = [
        (focal_x, nothing, half[1].expand_as(focal_x)),
        (nothing, focal_y, half[0].expand_as(focal_y)),
        (nothing, nothing, one),
    ]
    return extrinsics, torch.stack([torch.stack(row, dim=-1) for row in rows], dim=-2)
