"""Candidates: many depths and cameras for one layout, tried at once.

A layout is only used when there is a candidate for each of the possible answers, whichever of them is wanted. So the
first view, and all that the question says, are the same for all answers. Frame: the first camera's.
Shapes: M candidates, N objects, V views.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from gnomon.data.sources.scenes.draws import Draws
from gnomon.data.sources.scenes.layout import Layout, Setting

ROWS = 192
_ROLL = np.radians(10)


@dataclass(frozen=True)
class Candidates:
    """
    centres  (M,N,3)     radii  (M,N)
    cameras  (M,V,3,4)   from the first camera's frame; the first is [I|0]
    """

    layout: Layout
    centres: np.ndarray
    radii: np.ndarray
    cameras: np.ndarray

    @property
    def distances(self) -> np.ndarray:
        """(M,N) from the first camera."""
        return np.linalg.norm(self.centres, axis=-1)

    def only(self, rows: np.ndarray) -> Candidates:
        return Candidates(self.layout, self.centres[rows], self.radii[rows], self.cameras[rows])


def at(layout: Layout, distances: np.ndarray, cameras: np.ndarray) -> Candidates:
    """The layout's objects at these distances (M,N), as large as that makes them."""
    return Candidates(layout, distances[..., None] * layout.rays, distances * np.sin(layout.angles), cameras)


def rigs(draws: Draws, layout: Layout, setting: Setting, *, wander: float, rows: int = ROWS) -> np.ndarray:
    """(rows,V,3,4): further cameras in any direction from the first, looking about where the scene's middle is.

    wander  how far from the middle the point is that a camera looks at, at most, along each axis
    """
    count = len(layout.baselines)
    eye = draws.directions(rows, count) * layout.baselines[:, None]
    aim = np.array([0, 0, setting.middle]) + draws.spread(-wander, wander, rows, count, 3) - eye
    z = aim / np.linalg.norm(aim, axis=-1, keepdims=True)
    # y is as close to the first camera's as it can be, then rolled
    x = np.stack([z[..., 2], 0 * z[..., 2], -z[..., 0]], axis=-1) / np.hypot(z[..., 0], z[..., 2])[..., None]
    y = np.cross(z, x)
    roll = draws.spread(-_ROLL, _ROLL, rows, count)[..., None]
    x, y = np.cos(roll) * x + np.sin(roll) * y, np.cos(roll) * y - np.sin(roll) * x
    rotation = np.stack([x, y, z], axis=-2)
    cameras = np.zeros((rows, count + 1, 3, 4))
    cameras[:, 0, :, :3] = np.eye(3)
    cameras[:, 1:, :, :3] = rotation
    cameras[:, 1:, :, 3] = -np.einsum("mvij,mvj->mvi", rotation, eye)
    return cameras


def seen(found: Candidates, asked: int) -> np.ndarray:
    """(M,): is each of the first `asked` objects seen by at least one further camera, if there are any?"""
    if found.cameras.shape[1] == 1:
        return np.ones(len(found.centres), dtype=bool)
    return visible(found)[:, :, :asked].any(axis=1).all(axis=1)


def visible(found: Candidates) -> np.ndarray:
    """(M,V-1,N): is an object's middle, and half of it all around, in the view and behind no other object?"""
    cameras = found.cameras[:, 1:]
    place = np.einsum("mvij,mnj->mvni", cameras[..., :3], found.centres) + cameras[:, :, None, :, 3]
    away = np.sqrt(np.einsum("mvni,mvni->mvn", place, place))
    angle = found.radii[:, None] / away
    inside = framed(found.layout, place, 0.5 * found.radii[:, None])
    direction = place / away[..., None]
    cosine = np.einsum("mvai,mvbi->mvab", direction, direction)
    # small angles: cos x is about 1 - x^2 / 2
    close = 2 * (1 - cosine) < (0.5 * angle[..., :, None] + angle[..., None, :]) ** 2
    hidden = (close & (away[..., None, :] < away[..., :, None])).any(axis=-1)
    return inside & ~hidden


def framed(layout: Layout, place: np.ndarray, margin: np.ndarray | float) -> np.ndarray:
    """Are camera-space points (...,3) in the picture, with a margin (...) in world units around them?"""
    height, width = layout.size
    focal, z = layout.intrinsics[0, 0], place[..., 2]
    reach = focal * (np.abs(place[..., :2]) + np.asarray(margin)[..., None])
    return (z > 0.1) & (reach[..., 0] < width / 2 * z) & (reach[..., 1] < height / 2 * z)
