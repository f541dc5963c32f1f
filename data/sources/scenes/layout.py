"""Layout: what the first view shows, settled before anything has a depth.

Objects are placed as directions and angular radii. Moving an object along its direction and scaling it in proportion
leaves the first picture as it is, so a layout is compatible with any depths, and with any answer that depends on them.
Frame: the first camera's. Shapes: N objects, V views.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from gnomon.data.sources.scenes import solids, textures
from gnomon.data.sources.scenes.draws import Draws

COLOURS = {
    "red": (0.85, 0.15, 0.15),
    "orange": (0.95, 0.55, 0.1),
    "yellow": (0.95, 0.9, 0.2),
    "green": (0.2, 0.7, 0.2),
    "cyan": (0.2, 0.85, 0.85),
    "blue": (0.2, 0.35, 0.9),
    "purple": (0.55, 0.2, 0.75),
    "pink": (0.98, 0.6, 0.75),
    "brown": (0.5, 0.3, 0.15),
    "white": (0.95, 0.95, 0.95),
}
# Free angle between two objects, and free pixels at the edge of the picture.
_GAP, _EDGE = 0.02, 1.0
_TRIES = 40


@dataclass(frozen=True)
class Setting:
    """What a source's arguments leave to chance."""

    size: tuple[int, int]
    views: tuple[int, int]
    objects: tuple[int, int]
    distances: tuple[float, float]
    focal: tuple[float, float]
    baseline: tuple[float, float]
    angular: tuple[float, float]

    @property
    def middle(self) -> float:
        """How far the middle of the scene is from the first camera."""
        return sum(self.distances) / 2


@dataclass(frozen=True)
class Look:
    """Everything about an object but where it is and how large. `cubes` (n,3), int: it is a figure made of these."""

    name: str
    kind: int
    extent: np.ndarray
    turn: np.ndarray
    colour: np.ndarray
    pattern: int
    cycles: float
    cubes: np.ndarray | None = None


@dataclass(frozen=True)
class Layout:
    """
    looks       N, or more: the last ones are not in the first view
    rays        (N,3)      unit vectors to the centres
    angles      (N,)       angular radii
    baselines   (V-1,)     how far each further camera is from the first
    intrinsics  (3,3)
    """

    looks: list[Look]
    rays: np.ndarray
    angles: np.ndarray
    baselines: np.ndarray
    intrinsics: np.ndarray
    size: tuple[int, int]


def arrange(
    draws: Draws,
    setting: Setting,
    looks: list[Look],
    *,
    views: int,
    angular: tuple[float, float] | None = None,
    shown: int | None = None,
    in_line: bool = False,
) -> Layout | None:
    """The first `shown` objects (all) anywhere in the picture, none touching another; None where there is no room.

    in_line puts the second one between the first and third, on a straight line of the picture.
    """
    height, width = setting.size
    focal = draws.between(*setting.focal) * min(setting.size)
    intrinsics = np.array([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1]])
    baselines = draws.spread(*setting.baseline, views - 1)
    angles = draws.spread(*(angular or setting.angular), len(looks) if shown is None else shown)
    rays: dict[int, tuple[float, float, float]] = {}
    order = [0, 2, 1, *range(3, len(angles))] if in_line else range(len(angles))
    for k in order:
        for _ in range(_TRIES):
            if in_line and k == 1:
                share = draws.between(0.3, 0.7)
                # on the image plane, where z is 1
                x, y = (share * rays[0][a] / rays[0][2] + (1 - share) * rays[2][a] / rays[2][2] for a in (0, 1))
            else:
                x, y = draws.between(-0.5, 0.5) * width / focal, draws.between(-0.5, 0.5) * height / focal
            ray = _unit(x, y)
            if _inside(ray, angles[k], focal, setting.size) and all(
                sum(p * q for p, q in zip(ray, other)) < math.cos(angles[k] + angles[j] + _GAP)
                for j, other in rays.items()
            ):
                rays[k] = ray
                break
        else:
            return None
    return Layout(looks, np.array([rays[k] for k in range(len(rays))]), angles, baselines, intrinsics, setting.size)


def objects(draws: Draws, count: int) -> list[Look]:
    """Balls, boxes and cans, each of another colour."""
    return [_object(draws, colour, draws.integer(0, len(solids.KINDS) - 1)) for colour in draws.sample(COLOURS, count)]


def _object(draws: Draws, colour: str, kind: int) -> Look:
    extent = np.ones(3)
    if kind == solids.BOX:
        extent = draws.spread(0.5, 1.0, 3)
    elif kind == solids.CAN:
        extent = np.array([1.0, 0.0, draws.between(0.6, 1.6)])
    if kind != solids.BALL:
        # a can's corner is (radius, 0, half height)
        extent /= np.linalg.norm(extent)
    if kind == solids.CAN:
        extent[1] = extent[0]
    pattern = draws.pick((textures.PLAIN, textures.CHECKER, textures.STRIPES, textures.NOISE))
    return Look(
        name=f"{colour} {solids.KINDS[kind]}",
        kind=kind,
        extent=extent,
        turn=draws.rotation(),
        colour=albedo(draws, colour),
        pattern=pattern,
        cycles=draws.between(1.5, 3.5),
    )


def albedo(draws: Draws, colour: str) -> np.ndarray:
    """The colour that its word says, a little brighter or darker."""
    return np.clip(np.array(COLOURS[colour]) * draws.between(0.8, 1.05), 0, 1)


def _unit(x: float, y: float) -> tuple[float, float, float]:
    length = math.sqrt(x * x + y * y + 1)
    return x / length, y / length, 1 / length


def _inside(ray: tuple[float, float, float], angle: float, focal: float, size: tuple[int, int]) -> bool:
    """Is all of the cone with that angular radius in the picture?"""
    for across, side in ((ray[0], size[1]), (ray[1], size[0])):
        middle, half = math.atan2(across, ray[2]), math.asin(min(1, math.sin(angle) / math.hypot(across, ray[2])))
        if max(abs(math.tan(middle - half)), abs(math.tan(middle + half))) * focal > side / 2 - _EDGE:
            return False
    return True
