"""A contact sheet: samples side by side with their questions and answers, for looking at data before training on it."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from gnomon.data import ground_plan
from gnomon.data.image import load
from gnomon.data.sample import IMAGE_MARK, Sample

_LINE = 15
_GAP = 12


def contact_sheet(samples: Iterable[Sample], path: str | Path, *, columns: int = 4, width: int = 260) -> Path:
    """Write a PNG with one cell per sample: its images, scaled to `width`, above its conversation.

    Of a sample with geometry: all its views, their depth and a plan of the scene from above, as far as it has them.
    """
    cells = [_cell(sample, width) for sample in samples]
    if not cells:
        raise ValueError("no samples to show; pass at least one")
    rows = [cells[k : k + columns] for k in range(0, len(cells), columns)]
    tall = [max(cell.height for cell in row) for row in rows]
    wide = min(columns, len(cells)) * (width + _GAP) + _GAP
    sheet = Image.new("RGB", (wide, sum(tall) + _GAP * (len(rows) + 1)), "white")
    y = _GAP
    for row, height in zip(rows, tall):
        for column, cell in enumerate(row):
            sheet.paste(cell, (_GAP + column * (width + _GAP), y))
        y += height + _GAP
    path = Path(path)
    sheet.save(path, format="PNG")
    return path


def _cell(sample: Sample, width: int) -> Image.Image:
    pictures = [_scaled(image, width) for image in sample.images] if sample.geometry is None else _space(sample, width)
    lines = [(text, colour) for turn in sample.turns for text, colour in _lines(turn.role, turn.text, width)]
    lines.insert(0, (" ".join(str(sample.meta[key]) for key in ("task", "level") if key in sample.meta), "gray"))
    height = sum(picture.height + 2 for picture in pictures) + _LINE * len(lines) + 4
    cell = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(cell)
    font = ImageFont.load_default(12)
    y = 0
    for picture in pictures:
        cell.paste(picture, (0, y))
        draw.rectangle((0, y, width - 1, y + picture.height - 1), outline="lightgray")
        y += picture.height + 2
    for text, colour in lines:
        draw.text((2, y), text, fill=colour, font=font)
        y += _LINE
    return cell


def _space(sample: Sample, width: int) -> list[Image.Image]:
    geometry = sample.geometry
    pictures = [ground_plan.views(geometry, width)]
    if geometry.depth is not None:
        pictures.append(ground_plan.depths(geometry, width))
    placed = geometry.intrinsics is not None and geometry.extrinsics is not None
    if placed and (geometry.points is not None or geometry.depth is not None):
        names = {thing["id"]: thing["name"] for thing in sample.meta.get("objects", [])}
        pictures.append(ground_plan.above(geometry, width, names=names))
    return pictures


def _scaled(image: np.ndarray | Path | bytes, width: int) -> Image.Image:
    picture = Image.fromarray(load(image))
    return picture.resize((width, round(width * picture.height / picture.width)), Image.Resampling.LANCZOS)


def _lines(role: str, text: str, width: int) -> list[tuple[str, str]]:
    colour = {"user": "black", "assistant": "darkgreen"}.get(role, "gray")
    text = text.replace(IMAGE_MARK, "").strip()
    wrapped = [line for part in text.split("\n") for line in textwrap.wrap(part, width // 6) or [""]]
    return [(line, colour) for line in wrapped]
