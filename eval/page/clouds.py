"""Point clouds from two angles, with the cameras that see them.

The frame is the first camera's: x to the right, y down, z forward. From one angle all clouds are drawn alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

from gnomon.data.cameras import inverse
from gnomon.eval.page import raster, svg
from gnomon.eval.sight import Cloud

WIDTH, HEIGHT, LEFT, BASE, MARGIN = 480, 330, 44, 30, 8
# Pixels of the picture for one of the drawing, and of a point's side.
_FINE, _DOT = 2, 5
# A camera's length in the drawing, and the corners of its picture at a distance of 1.
_CAMERA = 20.0
_CORNERS = np.array([[-0.6, -0.45, 1], [0.6, -0.45, 1], [0.6, 0.45, 1], [-0.6, 0.45, 1]])


@dataclass(frozen=True)
class Angle:
    """Numbers of the axes that run to the right and upwards (`up`: 1, downwards: -1); nearer, by `order`, is on top."""

    name: str
    right: int
    vertical: int
    up: int
    along: int
    order: int


# y runs down: from above, what has the least of it is nearest; from the right, what has the most x
ANGLES = Angle("from above", 0, 2, 1, 1, -1), Angle("from the right side", 2, 1, -1, 0, 1)


@dataclass(frozen=True)
class Frame:
    """What part of space a drawing shows: `unit` pixels for 1, around the middle."""

    angle: Angle
    middle: np.ndarray
    unit: float

    def place(self, points: np.ndarray) -> np.ndarray:
        """(P,2) to the right and down, in the drawing, of (P,3)."""
        flat = points[:, [self.angle.right, self.angle.vertical]].astype(np.float64) - self.middle
        centre = (LEFT + WIDTH - MARGIN) / 2, (MARGIN + HEIGHT - BASE) / 2
        return flat * (self.unit, -self.angle.up * self.unit) + centre


def charts(clouds: Sequence[tuple[str, Cloud]]) -> str:
    """A column per cloud. The last one decides what part of space is shown: it is the true one where there is one."""
    low, high = np.percentile(clouds[-1][1].points.astype(np.float64), [1, 99], axis=0)
    standing = np.concatenate([_centres(cloud) for _, cloud in clouds])
    low, high = np.minimum(low, standing.min(0)), np.maximum(high, standing.max(0))
    figures = [_figure(name, cloud, _frame(angle, low, high)) for angle in ANGLES for name, cloud in clouds]
    return f'<div class="clouds">{"".join(figures)}</div>'


def _frame(angle: Angle, low: np.ndarray, high: np.ndarray) -> Frame:
    axes = [angle.right, angle.vertical]
    # with room for a camera at the edge, and for a single point there is some space too
    room = np.array([WIDTH - LEFT - MARGIN, HEIGHT - BASE - MARGIN]) - 2.2 * _CAMERA
    return Frame(angle, ((low + high) / 2)[axes], float((room / np.maximum((high - low)[axes], 1e-3)).min()))


def _figure(name: str, cloud: Cloud, frame: Frame) -> str:
    angle = frame.angle
    order = np.argsort(angle.order * cloud.points[:, angle.along], kind="stable")
    places = frame.place(cloud.points[order])
    box = (LEFT, MARGIN, WIDTH - MARGIN, HEIGHT - BASE)
    inside = ((places >= box[:2]) & (places <= box[2:])).all(-1)
    width, height = box[2] - box[0], box[3] - box[1]
    dots = raster.dots(
        (places[inside] - box[:2]) * _FINE, cloud.colours[order][inside], (height * _FINE, width * _FINE), side=_DOT
    )
    image = f'<image x="{box[0]}" y="{box[1]}" width="{width}" height="{height}" href="{dots}"/>'
    back = f'<rect class="space" x="{box[0]}" y="{box[1]}" width="{width}" height="{height}" rx="6"/>'
    title = f"{name} points {angle.name}"
    parts = [back, *_grid(frame, box), image, *_cameras(cloud, frame), *_names(angle, box)]
    drawing = svg.drawing(HEIGHT, parts, title, width=WIDTH)
    beyond = f"; {1 - inside.mean():.0%} of them lie outside" if len(inside) and not inside.all() else ""
    return f"<figure>{drawing}<figcaption>{escape(title + beyond)}</figcaption></figure>"


def _grid(frame: Frame, box: tuple[int, int, int, int]) -> list[str]:
    angle, parts = frame.angle, []
    half = np.array([box[2] - box[0], box[3] - box[1]]) / 2 / frame.unit
    (left, bottom), (right, top) = frame.middle - half, frame.middle + half
    x, y = (
        lambda value: frame.place(_on(angle.right, value))[0, 0],
        lambda value: frame.place(_on(angle.vertical, value))[0, 1],
    )
    for value in svg.ticks(left, right):
        parts.append(svg.line("grid", x(value), box[1], x(value), box[3]))
        parts.append(svg.text("tick", x(value), HEIGHT - BASE + 18, svg.number(value)))
    for value in svg.ticks(bottom, top):
        parts.append(svg.line("grid", box[0], y(value), box[2], y(value)))
        parts.append(svg.text("tick", LEFT - 7, y(value) + 4, svg.number(value), anchor="end"))
    return parts


def _names(angle: Angle, box: tuple[int, int, int, int]) -> list[str]:
    """Of the axes, at the ends that they run to."""
    end = box[1] + 18 if angle.up > 0 else box[3] - 8
    return [
        svg.text("name", box[2] - 12, box[3] - 8, "xyz"[angle.right]),
        svg.text("name", box[0] + 12, end, "xyz"[angle.vertical]),
    ]


def _cameras(cloud: Cloud, frame: Frame) -> list[str]:
    """Each as the pyramid of what it sees."""
    parts = []
    for number, camera in enumerate(inverse(cloud.cameras) if cloud.cameras is not None else ()):
        corners = _CORNERS * (_CAMERA / frame.unit) @ camera[:, :3].T + camera[:, 3]
        (tip, *rest) = (f"{x:.1f} {y:.1f}" for x, y in frame.place(np.concatenate([camera[None, :, 3], corners])))
        path = "".join(f"M{tip}L{corner}" for corner in rest) + f"M{'L'.join(rest)}Z"
        parts.append(f'<path class="camera" d="{path}"><title>camera of view {number}</title></path>')
    return parts


def _centres(cloud: Cloud) -> np.ndarray:
    return np.zeros((1, 3)) if cloud.cameras is None else inverse(cloud.cameras)[..., 3]


def _on(axis: int, value: float) -> np.ndarray:
    point = np.zeros((1, 3))
    point[0, axis] = value
    return point
