"""Any resolution: an image as a whole and in crops, and which of the crops' cells are tokens, as LLaVA-NeXT has it.

The image is scaled to fit the canvas that keeps most of it, laid on its middle and cut into crops. Cells that lie on
the rim around it are no tokens. Rounding follows the original: the rim is measured in cells, the picture in pixels.

Shapes: h,w cells of a crop; N tokens.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from PIL import Image as Pillow
from torch import Tensor

from gnomon.vlm.layout import ImageSpec


def crops(pixels: np.ndarray, spec: ImageSpec) -> list[Tensor]:
    """(H,W,3) uint8 to (3,h,w) uint8 each: the whole, then the crops that hold tokens, row by row."""
    image = Pillow.fromarray(pixels)
    height, width = spec.size
    whole = image.resize((width, height), Pillow.Resampling.BICUBIC)
    tall, wide = canvas(image.height, image.width, spec)
    inner = _inside(image.height, image.width, tall, wide)
    picture = Pillow.new("RGB", (wide, tall))
    picture.paste(
        image.resize(inner[::-1], Pillow.Resampling.BICUBIC), ((wide - inner[1]) // 2, (tall - inner[0]) // 2)
    )
    found = [whole]
    for row, column in _used(_cells(image.height, image.width, spec), spec):
        left, top = column * width, row * height
        found.append(picture.crop((left, top, left + width, top + height)))
    return [torch.from_numpy(np.array(part)).permute(2, 0, 1).contiguous() for part in found]


def slots(height: int, width: int, spec: ImageSpec) -> tuple[np.ndarray, np.ndarray]:
    """(N,) crop (0 is the whole) and (N,2) cell of the tokens of an image of this size; -1, -1 ends a row of crops."""
    h, w = spec.grid(*spec.size)
    rows, columns = _cells(height, width, spec)
    number = {place: k for k, place in enumerate(_used((rows, columns), spec), 1)}
    crop, cell = [0] * (h * w), [divmod(i, w) for i in range(h * w)]
    for row in rows:
        line = [(number[row // h, column // w], row % h, column % w) for column in columns]
        # a strip so thin that no column is left has the ends of its rows all the same
        crop += [k for k, _, _ in line] + [line[-1][0] if line else 0]
        cell += [(r, c) for _, r, c in line] + [(-1, -1)]
    return np.asarray(crop), np.asarray(cell)


def canvas(height: int, width: int, spec: ImageSpec) -> tuple[int, int]:
    """The canvas that keeps most pixels of an image of this size, and of such the one that leaves least empty."""

    def merit(size: tuple[int, int]) -> tuple[int, int]:
        scale = min(size[1] / width, size[0] / height)
        kept = min(int(width * scale) * int(height * scale), width * height)
        return kept, kept - size[0] * size[1]

    return max(spec.canvases, key=merit)


def _inside(height: int, width: int, tall: int, wide: int) -> tuple[int, int]:
    """Height and width of the scaled image on its canvas."""
    across, down = wide / width, tall / height
    if across < down:
        return min(math.ceil(height * across), tall), wide
    return tall, min(math.ceil(width * down), wide)


def _cells(height: int, width: int, spec: ImageSpec) -> tuple[range, range]:
    """The rows and columns of the canvas's cells that are tokens."""
    tall, wide = (side // spec.cell for side in canvas(height, width, spec))
    rows, columns = range(tall), range(wide)
    if width / height > wide / tall:
        rim = (tall - int(round(height * (wide / width), 7))) // 2
        return rows[rim : tall - rim], columns
    rim = (wide - int(round(width * (tall / height), 7))) // 2
    return rows, columns[rim : wide - rim]


def _used(cells: tuple[range, range], spec: ImageSpec) -> list[tuple[int, int]]:
    """Row and column of the crops that these cells are in."""
    h, w = spec.grid(*spec.size)
    down, across = ({place // side: None for place in places} for places, side in zip(cells, (h, w)))
    return [(row, column) for row in down for column in across]
