"""Pixels of a figure: drawn by Pillow a few times too large, then reduced, which smooths every edge."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
from PIL import Image, ImageDraw

from gnomon.data.sources.diagrams import labels
from gnomon.data.sources.diagrams.figure import Figure, Mark
from gnomon.data.sources.diagrams.plane import unit
from gnomon.data.sources.diagrams.style import Colour, Style, cap_pixels, glyphs

_ENOUGH = 448


def oversampling(size: tuple[int, int]) -> int:
    return max(2, min(4, math.ceil(_ENOUGH / min(size))))


def layout(figure: Figure, style: Style, size: tuple[int, int]) -> list[labels.Label]:
    """Where every text goes; raises Rejected when one has no free place."""
    times, shorter = oversampling(size), min(size)
    cap = cap_pixels(style, shorter) * times

    def measure(text: str) -> tuple[float, float]:
        width, height = glyphs(style.font, cap, text).size
        return width / (2 * times * shorter), height / (2 * times * shorter)

    return labels.place(figure, measure)


def render(figure: Figure, style: Style, texts: list[labels.Label], size: tuple[int, int]) -> np.ndarray:
    """The (H, W, 3) uint8 image."""
    times = oversampling(size)
    pen = _Pen(Image.new("RGB", (size[1] * times, size[0] * times), style.paper), style, times * min(size), times)
    circles, marks, shapes = style.accents
    for circle in figure.circles:
        pen.circle(circle.centre, circle.radius, circles)
    for shape in figure.shapes:
        for path in shape.filled:
            pen.fill(path, shapes)
        for path in shape.paths:
            pen.path(path, shapes)
        for path in shape.dashed:
            for a, b in pairwise(path):
                pen.line(a, b, shapes, dashed=True)
        if shape.circle:
            pen.circle(*shape.circle, shapes)
    for k, line in enumerate(figure.lines):
        # Some figures show their later, auxiliary strokes dashed.
        pen.line(*line.ends, style.ink, dashed=style.dashed and k > 2 and len(line.points) > 0)
    if style.marks:
        for mark in figure.marks:
            pen.mark(figure, mark, marks)
    for note in figure.notes:
        if len(note.ids) == 3:
            pen.arc(*(figure.points[k] for k in note.ids), labels.NOTE_ARC, marks)
    for point in dotted(figure, style):
        pen.dot(figure.points[point], style.ink)
    for text in texts:
        pen.text(text, style.letters)
    return np.array(pen.image.reduce(times))


def dotted(figure: Figure, style: Style) -> list[int]:
    """The points that get a dot: all of them, or those that no end or crossing of strokes shows."""
    if style.dots:
        return list(range(len(figure.points)))
    shown = set()
    for k, at in enumerate(figure.points):
        through = [line for line in figure.lines if k in line.points]
        if len(through) > 1 or any(min(abs(at - end) for end in line.ends) < 1e-9 for line in through):
            shown.add(k)
    return [k for k in range(len(figure.points)) if k not in shown]


class _Pen:
    def __init__(self, image: Image.Image, style: Style, scale: int, times: int) -> None:
        self.image, self.style, self.scale = image, style, scale
        self.cap = cap_pixels(style, scale // times) * times
        # Never thinner than one pixel of the final image.
        self.width = max(times, round(style.width * scale))
        self.draw = ImageDraw.Draw(image)

    def xy(self, p: complex) -> tuple[int, int]:
        return round(p.real * self.scale), round(p.imag * self.scale)

    def line(self, a: complex, b: complex, colour: Colour, dashed: bool = False) -> None:
        if not dashed:
            self.draw.line((*self.xy(a), *self.xy(b)), fill=colour, width=self.width)
            return
        count = max(2, round(abs(b - a) / 0.035))
        for k in range(count):
            start = a + (b - a) * k / count
            self.draw.line((*self.xy(start), *self.xy(start + (b - a) * 0.55 / count)), fill=colour, width=self.width)

    def path(self, points: tuple[complex, ...], colour: Colour) -> None:
        self.draw.line([self.xy(p) for p in points], fill=colour, width=self.width, joint="curve")

    def fill(self, points: tuple[complex, ...], colour: Colour) -> None:
        self.draw.polygon([self.xy(p) for p in points], fill=colour)

    def circle(self, centre: complex, radius: float, colour: Colour) -> None:
        (x, y), r = self.xy(centre), round(radius * self.scale + self.width / 2)
        self.draw.ellipse((x - r, y - r, x + r, y + r), outline=colour, width=self.width)

    def dot(self, at: complex, colour: Colour) -> None:
        (x, y), r = self.xy(at), max(self.width * 1.25, 0.008 * self.scale)
        self.draw.ellipse((x - r, y - r, x + r, y + r), fill=colour)

    def arc(self, a: complex, b: complex, c: complex, radius: float, colour: Colour) -> None:
        (x, y), r = self.xy(b), round(radius * self.scale)
        start, stop = (math.degrees(math.atan2((p - b).imag, (p - b).real)) for p in (a, c))
        if (stop - start) % 360 > 180:
            start, stop = stop, start
        self.draw.arc((x - r, y - r, x + r, y + r), start, stop, fill=colour, width=max(1, self.width * 2 // 3))

    def mark(self, figure: Figure, mark: Mark, colour: Colour) -> None:
        at = [figure.points[k] for k in mark.ids]
        thin = max(1, self.width * 2 // 3)
        if mark.kind == "square":
            p, q, r = at
            u, v = labels.SQUARE * unit(p - q), labels.SQUARE * unit(r - q)
            self.draw.line([self.xy(z) for z in (q + u, q + u + v, q + v)], fill=colour, width=thin)
        elif mark.kind == "arc":
            for k in range(mark.count):
                self.arc(*at, labels.MARK_ARC + 0.014 * k, colour)
        else:
            a, b = at
            along = unit(b - a)
            for k in range(mark.count):
                middle = (a + b) / 2 + along * 0.014 * (k - (mark.count - 1) / 2)
                across = 1j * labels.TICK * along
                self.draw.line((*self.xy(middle - across), *self.xy(middle + across)), fill=colour, width=thin)

    def text(self, label: labels.Label, colour: Colour) -> None:
        mask = glyphs(self.style.font, self.cap, label.text)
        x, y = self.xy(label.at)
        x, y = x - mask.width // 2, y - mask.height // 2
        self.image.paste(colour, (x, y, x + mask.width, y + mask.height), mask)
