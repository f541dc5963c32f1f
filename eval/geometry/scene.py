"""One scene as it was predicted, brought into the frame and the unit of the truth, with how far off it is.

A prediction up to scale gets one factor for all of its views: the ratio of medians, of depth for depth and of the
distance from the first camera for points.

Shapes: S views, H,W pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from gnomon.data.cameras import compose, inverse, unproject
from gnomon.eval.geometry.align import fit_depth
from gnomon.eval.geometry.depth import depth_errors
from gnomon.eval.geometry.points import point_map_error


@dataclass(frozen=True)
class Prediction:
    """depth (S,H,W), points (S,H,W,3) in `frame` (ref_camera, own_camera or world), extrinsics (S,3,4), intrinsics
    (S,3,3), as far as an encoder has them; scale: metric = scale * prediction, None: up to scale.
    """

    depth: np.ndarray | None = None
    points: np.ndarray | None = None
    frame: str = "ref_camera"
    extrinsics: np.ndarray | None = None
    intrinsics: np.ndarray | None = None
    scale: float | None = None

    @property
    def unit(self) -> float:
        return 1.0 if self.scale is None else self.scale


class Truth:
    """depth and known (S,H,W), cameras (S,3,4) and points (S,H,W,3) in the first camera's frame; None: not known."""

    def __init__(self, depth: np.ndarray | None, intrinsics: np.ndarray | None, extrinsics: np.ndarray | None) -> None:
        self.depth = depth if depth is not None and (depth > 0).any() else None
        self.known = None if self.depth is None else depth > 0
        self.cameras = None if extrinsics is None else compose(extrinsics, inverse(extrinsics[0]))
        self.points = None
        if self.depth is not None and intrinsics is not None and self.cameras is not None:
            self.points = np.stack([unproject(*one) for one in zip(depth, intrinsics, self.cameras)])


@dataclass(frozen=True)
class DepthResult:
    """depth (S,H,W) in the truth's unit; factor that did it, None: none was needed, nan: none does. abs_rel: of all
    views, and each; infinite where something is known and what is predicted of it is no number.
    """

    depth: np.ndarray
    factor: float | None = None
    abs_rel: float | None = None
    by_view: tuple[float, ...] = ()


@dataclass(frozen=True)
class PointsResult:
    """points (S,H,W,3) and cameras (S,3,4) in the first camera's frame and the truth's unit; factor as above.

    error   mean |p' - p| / |p|
    lent    the points are of each camera's own frame, and the true cameras brought them together
    """

    points: np.ndarray
    cameras: np.ndarray | None = None
    factor: float | None = None
    error: float | None = None
    lent: bool = False


def depth_result(found: Prediction, truth: Truth) -> DepthResult | None:
    if found.depth is None:
        return None
    depth = found.depth * found.unit
    if truth.depth is None:
        return DepthResult(depth)
    factor = None if found.scale is not None else _ratio(depth, truth.depth, truth.known)
    depth = depth if factor is None else factor * depth
    by_view = tuple(_abs_rel(*pair) for pair in zip(depth, truth.depth))
    return DepthResult(depth, factor, _abs_rel(depth, truth.depth), by_view)


def points_result(found: Prediction, truth: Truth) -> PointsResult | None:
    """None too where no camera is placed: in a world that the encoder made up, or where each camera has points of its
    own and nobody says where the cameras are.
    """
    points, frame = found.points, found.frame
    if points is None and found.depth is not None and found.intrinsics is not None:
        lenses = zip(found.depth, found.intrinsics)
        points, frame = np.stack([unproject(*one, np.eye(3, 4)) for one in lenses]), "own_camera"
    if points is None or (frame == "world" and found.extrinsics is None):
        return None
    points, cameras, own = points * found.unit, None, frame == "own_camera"
    if found.extrinsics is not None:
        world = _scaled(found.extrinsics, found.unit)
        cameras = compose(world, inverse(world[0]))
        if frame == "world":
            points = points @ world[0, :, :3].T + world[0, :, 3]
        elif own:
            points = _joined(points, cameras)
    lent = own and cameras is None and len(points) > 1
    if lent and truth.points is None:
        return None
    factor, error = None, None
    if truth.points is not None and found.scale is None:
        far = (np.linalg.norm(points, axis=-1), np.linalg.norm(truth.points, axis=-1))
        factor = _ratio(*((points[..., 2], truth.depth) if lent else far), truth.known)
        points, cameras = factor * points, None if cameras is None else _scaled(cameras, factor)
    if lent:
        points = _joined(points, truth.cameras)
    if truth.points is not None:
        whole = np.isfinite(points[truth.known]).all()
        error = point_map_error(points, truth.points, truth.known, align=False) if whole else np.inf
    return PointsResult(points, cameras, factor, error, lent)


def _abs_rel(depth: np.ndarray, truth: np.ndarray) -> float:
    whole = np.isfinite(depth[np.isfinite(truth) & (truth > 0)]).all()
    return depth_errors(depth, truth)["abs_rel"] if whole else np.inf


def _ratio(found: np.ndarray, wanted: np.ndarray, known: np.ndarray) -> float:
    """Of the medians, over what is known and a number; nan where that is nothing or the ratio is not positive."""
    return fit_depth(found, wanted, known & np.isfinite(found), how="median")[0]


def _scaled(cameras: np.ndarray, factor: float) -> np.ndarray:
    return np.concatenate([cameras[..., :3], factor * cameras[..., 3:]], axis=-1)


def _joined(own: np.ndarray, cameras: np.ndarray) -> np.ndarray:
    """Points of each camera's own frame in the one that the cameras are of."""
    back = inverse(cameras)
    return np.einsum("sij,shwj->shwi", back[..., :3], own) + back[:, None, None, :, 3]
