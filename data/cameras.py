"""Cameras: gnomon's one convention, and the ways between it and the other usual ones.

Ours is "opencv": the camera looks along +z, x runs right and y down; extrinsics [R|t] are camera-from-world,
X_camera = R X_world + t, so the camera is at -R^T t. Intrinsics are in pixels, and the first pixel's centre is at
(0.5, 0.5). Depth is the z of the camera frame, not the length of the ray.
"""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np

Convention = Literal["opencv", "opencv_pose", "opengl", "opengl_pose", "pytorch3d"]
"""A `pose` is world-from-camera, the others are camera-from-world.

opencv       x right, y down, z forward: COLMAP, VGGT, Depth Anything 3; ours
opencv_pose  its inverse: ScanNet, TUM, KITTI odometry
opengl       x right, y up, z backward: an OpenGL view matrix
opengl_pose  its inverse: NeRF's transforms.json, Blender, ARKit
pytorch3d    x left, y up, z forward, and R is for row vectors: X_camera = X_world R + T
"""

CONVENTIONS: tuple[Convention, ...] = get_args(Convention)
OURS: Convention = "opencv"

# Signs of the camera's axes in terms of ours.
_AXES = {"opencv": (1.0, 1.0, 1.0), "opengl": (1.0, -1.0, -1.0), "pytorch3d": (-1.0, -1.0, 1.0)}


def convert(extrinsics: np.ndarray, *, source: Convention, target: Convention = OURS) -> np.ndarray:
    """(...,3,4) or (...,4,4) matrices of one convention as (...,3,4) of another."""
    matrix = np.asarray(extrinsics, dtype=np.float64)
    if matrix.shape[-2:] not in ((3, 4), (4, 4)):
        raise ValueError(f"extrinsics have shape {matrix.shape}; use (..., 3, 4) or (..., 4, 4) matrices [R|t]")
    for name in (source, target):
        if name not in CONVENTIONS:
            raise ValueError(f"camera convention {name!r} is unknown; choose from {', '.join(CONVENTIONS)}")
    matrix = matrix[..., :3, :]
    # to camera-from-world with the source's axes, then our axes, then the way back with the target's
    if source == "pytorch3d":
        matrix = _rows(matrix)
    if source.endswith("_pose"):
        matrix = inverse(matrix)
    signs = np.array(_AXES[source.removesuffix("_pose")]) * _AXES[target.removesuffix("_pose")]
    matrix = signs[:, None] * matrix
    if target.endswith("_pose"):
        matrix = inverse(matrix)
    return _rows(matrix) if target == "pytorch3d" else matrix


def inverse(rigid: np.ndarray) -> np.ndarray:
    """Of (...,3,4) matrices [R|t]: [R^T | -R^T t]."""
    back = np.swapaxes(rigid[..., :3], -1, -2)
    return np.concatenate([back, -back @ rigid[..., 3:]], axis=-1)


def compose(second: np.ndarray, first: np.ndarray) -> np.ndarray:
    """(...,3,4) of doing `first`, then `second`."""
    rotation = second[..., :3]
    return np.concatenate([rotation @ first[..., :3], rotation @ first[..., 3:] + second[..., 3:]], axis=-1)


def project(points: np.ndarray, intrinsics: np.ndarray, extrinsics: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pixel coordinates (...,2) and depth (...,) of world points (...,3) in one camera; inf or nan at depth 0."""
    camera = points @ extrinsics[:, :3].T + extrinsics[:, 3]
    with np.errstate(divide="ignore", invalid="ignore"):
        pixel = (camera @ intrinsics.T)[..., :2] / camera[..., 2:]
    return pixel, camera[..., 2]


def unproject(depth: np.ndarray, intrinsics: np.ndarray, extrinsics: np.ndarray) -> np.ndarray:
    """(H,W,3) world points that one camera sees at depth (H,W); meaningless where the depth is 0."""
    height, width = depth.shape
    u, v = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
    rays = np.stack([u, v, np.ones_like(u)], axis=-1) @ np.linalg.inv(intrinsics).T
    return (rays * depth[..., None] - extrinsics[:, 3]) @ extrinsics[:, :3]


def _rows(matrix: np.ndarray) -> np.ndarray:
    """With R transposed: from row vectors to column vectors, or back."""
    return np.concatenate([np.swapaxes(matrix[..., :3], -1, -2), matrix[..., 3:]], axis=-1)
