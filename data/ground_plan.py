"""Pictures of a sample's geometry, to look at: views in a row, depth in colours, and the scene from above."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from gnomon.data.cameras import inverse
from gnomon.data.geometry import points, relative
from gnomon.data.image import load
from gnomon.data.sample import Geometry

_PAPER, _INK, _FAINT = (250, 250, 250), (40, 40, 40), (205, 205, 205)
_GAP = 2


def views(geometry: Geometry, width: int) -> Image.Image:
    """All views side by side."""
    return _row([Image.fromarray(load(view)) for view in geometry.views], width)


def depths(geometry: Geometry, width: int) -> Image.Image:
    """All depth maps side by side, on one scale: red is near, blue far, black unknown."""
    from matplotlib import colormaps

    known = geometry.depth > 0
    low, high = (geometry.depth[known].min(), geometry.depth[known].max()) if known.any() else (0.0, 1.0)
    # half of the colours for the nearer half of the pixels that matter: in terms of 1/z
    shares = (1 / np.maximum(geometry.depth, low) - 1 / high) / max(1 / low - 1 / high, 1e-9)
    colours = (255 * colormaps["turbo"](shares)[..., :3]).astype(np.uint8)
    colours[~known] = 0
    return _row([Image.fromarray(colour) for colour in colours], width)


def above(geometry: Geometry, side: int, *, names: Mapping[int, str] | None = None) -> Image.Image:
    """What is seen from above in the first camera's frame: x to the right, z upwards; cameras as numbered wedges.

    names  of instances, written below them
    """
    scene = relative(geometry if geometry.points is not None else replace(geometry, points=points(geometry)))
    known = (scene.points != 0).any(-1)
    x, z = scene.points[known][:, [0, 2]].T
    colour = np.stack([load(view) for view in scene.views])[known]
    instance = np.zeros(len(x), int) if scene.instances is None else scene.instances[known]
    plan = _Plan(side, x[instance > 0] if instance.any() else x, z[instance > 0] if instance.any() else z)
    # the background first, and what is higher over what is lower
    order = np.lexsort((-scene.points[known][:, 1], instance > 0))
    plan.dots(x[order], z[order], np.where(instance[order, None] > 0, colour[order], _FAINT))
    for k, (camera, lens) in enumerate(zip(inverse(scene.extrinsics), scene.intrinsics)):
        plan.camera(camera, lens, scene.views[k], str(k + 1))
    for number, name in (names or {}).items():
        if (instance == number).any():
            plan.write(x[instance == number].mean(), z[instance == number].min(), name)
    return plan.image


class _Plan:
    """A square of the ground around the cameras and all that matters."""

    def __init__(self, side: int, x: np.ndarray, z: np.ndarray) -> None:
        self.image = Image.new("RGB", (side, side), _PAPER)
        self.draw, self.font = ImageDraw.Draw(self.image), ImageFont.load_default(10)
        top = max(float(z.max(initial=1.0)), 1.0) * 1.1
        reach = max(top + 1.5, 2.2 * float(np.abs(x).max(initial=1.0)))
        self.scale, self.side = side / reach, side
        self.draw.text((4, 2), f"{reach:.1f} m", fill=_INK, font=self.font)

    def pixel(self, x: float, z: float) -> tuple[float, float]:
        return self.side / 2 + self.scale * x, self.side - self.scale * (z + 1.3)

    def dots(self, x: np.ndarray, z: np.ndarray, colours: np.ndarray) -> None:
        column, row = (np.rint(each).astype(int) for each in self.pixel(x, z))
        inside = (column >= 0) & (column < self.side) & (row >= 0) & (row < self.side)
        canvas = np.array(self.image)
        canvas[row[inside], column[inside]] = colours[inside]
        self.image.paste(Image.fromarray(canvas))

    def camera(self, pose: np.ndarray, lens: np.ndarray, view: np.ndarray, name: str) -> None:
        """A wedge as wide as the field of view; `pose` is world-from-camera."""
        half = load(view).shape[1] / 2 / lens[0, 0]
        eye = pose[:, 3]
        corners = [eye, *(eye + 0.7 * pose[:, :3] @ [edge, 0, 1] for edge in (-half, half))]
        self.draw.polygon([self.pixel(corner[0], corner[2]) for corner in corners], outline=(200, 30, 30))
        self.write(eye[0], eye[2] - 0.1, name)

    def write(self, x: float, z: float, text: str) -> None:
        column, row = self.pixel(x, z)
        self.draw.text((column, row), text, fill=_INK, font=self.font, anchor="ma")


def _row(pictures: list[Image.Image], width: int) -> Image.Image:
    side = (width - _GAP * (len(pictures) - 1)) // len(pictures)
    height = max(1, round(side * pictures[0].height / pictures[0].width))
    row = Image.new("RGB", (width, height), "white")
    for k, picture in enumerate(pictures):
        row.paste(picture.resize((side, height), Image.Resampling.LANCZOS), (k * (side + _GAP), 0))
    return row
