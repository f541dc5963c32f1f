"""Places for letters and notes: beside what they name, clear of every stroke and of one another.

A text is a box (half width, half height). All its candidate places are tried against all strokes at once; then the
texts choose in turn, those with the fewest free places first.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from gnomon.data.sources.diagrams.figure import Figure, Mark, Note, Rejected, Shape
from gnomon.data.sources.diagrams.plane import turned, unit

# Sizes of signs: radii of arcs, side of the right-angle square, half length of a tick.
NOTE_ARC, MARK_ARC, SQUARE, TICK = 0.07, 0.075, 0.045, 0.02

_WAYS = [turned(22.5 * k) for k in range(16)]
_GAPS = (0.018, 0.034, 0.055)
_CLEAR = 0.008
_EDGE = 0.012
# How much clearer of other strokes a note must be than of its own.
_ASIDE = 0.035
# A letter stands at most this share as far from its point as from any other.
_NEARER = 0.85


@dataclass(frozen=True)
class Text:
    text: str
    half: tuple[float, float]
    # Candidate centres, the preferred first.
    places: tuple[complex, ...]
    # The line that a note belongs to; it keeps further away from all others.
    own: int | None = None
    # The point that a letter names; no other point may be nearly as near.
    point: int | None = None
    # So many neighbouring candidates are equally good.
    ring: int = 1


@dataclass(frozen=True)
class Label:
    text: str
    at: complex
    half: tuple[float, float]


def place(figure: Figure, measure: Callable[[str], tuple[float, float]]) -> list[Label]:
    """Labels for all names and notes; measure(text) gives a text's half width and half height."""
    texts = [_beside_point(figure, k, measure(name)) for k, name in enumerate(figure.names) if name]
    texts += [_at_note(figure, note, measure(note.text)) for note in figure.notes]
    texts += [_at_shape(figure, shape, measure(shape.name)) for shape in figure.shapes if shape.name]
    if not texts:
        return []
    free = _clearances(figure, texts)
    order = sorted(range(len(texts)), key=lambda k: sum(clear > _CLEAR for clear in free[k]))
    chosen: dict[int, Label] = {}
    for k in order:
        text = texts[k]
        best, best_cost = None, math.inf
        for rank, (at, clear) in enumerate(zip(text.places, free[k])):
            # Early candidates first, but a clearly freer place is worth a step away.
            cost = 0.0012 * (rank - rank % text.ring) - min(clear, 0.03)
            if clear <= _CLEAR or cost >= best_cost:
                continue
            if not any(_overlap(at, text.half, other) for other in chosen.values()):
                best, best_cost = at, cost
        if best is None:
            raise Rejected(f"no free place for {text.text}")
        chosen[k] = Label(text.text, best, text.half)
    return [chosen[k] for k in range(len(texts))]


def _overlap(at: complex, half: tuple[float, float], other: Label) -> bool:
    apart = at - other.at
    return abs(apart.real) < half[0] + other.half[0] + 0.015 and abs(apart.imag) < half[1] + other.half[1] + 0.015


def _beside_point(figure: Figure, point: int, half: tuple[float, float]) -> Text:
    # Where several places are as free, not every letter should stand on the same side.
    ways = _WAYS[5 * point % 16 :] + _WAYS[: 5 * point % 16]
    # Far enough out that the box, seen along the way, starts a gap after the point.
    places = tuple(
        figure.points[point] + way * (gap + min(half[0] / max(abs(way.real), 1e-9), half[1] / max(abs(way.imag), 1e-9)))
        for gap in _GAPS
        for way in ways
    )
    return Text(figure.names[point], half, places, point=point, ring=len(ways))


def _at_note(figure: Figure, note: Note, half: tuple[float, float]) -> Text:
    a, b, *rest = (figure.points[k] for k in note.ids)
    if not rest:
        normal = 1j * unit(b - a)
        out = abs(normal.real) * half[0] + abs(normal.imag) * half[1]
        places = [a + (b - a) * t + side * normal * (out + gap)
                  for gap in (0.012, 0.022) for t in (0.5, 0.42, 0.58, 0.34, 0.66) for side in (1, -1)]  # fmt: skip
        return Text(note.text, half, tuple(places), own=figure.line_through(*note.ids))
    # Beyond the arc, which tells whose angle it is.
    middle = unit(unit(a - b) + unit(rest[0] - b))
    places = []
    for gap in (0.012, 0.026, 0.04, 0.06):
        for swing in (0, 7, -7):
            way = middle * turned(swing)
            places.append(b + way * (NOTE_ARC + gap + abs(way.real) * half[0] + abs(way.imag) * half[1]))
    return Text(note.text, half, tuple(places))


def _at_shape(figure: Figure, shape: Shape, half: tuple[float, float]) -> Text:
    left, top, right, bottom = shape.box
    x, y = (left + right) / 2, (top + bottom) / 2
    w, h = half[0] + 0.025, half[1] + 0.025
    outside = (
        complex(x, bottom + h), complex(x, top - h), complex(right + w, y), complex(left - w, y),
        complex(left - w, top), complex(right + w, top), complex(left - w, bottom), complex(right + w, bottom),
    )  # fmt: skip
    places = outside if shape.seat is None else (shape.seat, *outside)
    # Beside the shape, but clearly not beside another.
    others = [other.box for other in figure.shapes if other is not shape]
    able = (p for p in places if all(_off_box(p, box) > 1.5 * _off_box(p, shape.box) + 0.03 for box in others))
    return Text(shape.name, half, tuple(able))


def _off_box(p: complex, box: tuple[float, float, float, float]) -> float:
    left, top, right, bottom = box
    return math.hypot(max(left - p.real, p.real - right, 0), max(top - p.imag, p.imag - bottom, 0))


def obstacles(figure: Figure) -> tuple[np.ndarray, np.ndarray]:
    """Segments (S, 4) and circles (C, 3) that no text may touch."""
    at = figure.points
    strokes = [line.ends for line in figure.lines]
    for shape in figure.shapes:
        for path in (*shape.paths, *shape.dashed, *shape.filled):
            strokes += pairwise(path)
    for mark in figure.marks:
        strokes += _sign(mark, [at[k] for k in mark.ids])
    for note in figure.notes:
        if len(note.ids) == 3:
            strokes += _arc(*(at[k] for k in note.ids), NOTE_ARC)
    rings = [(circle.centre.real, circle.centre.imag, circle.radius) for circle in figure.circles]
    rings += [(s.circle[0].real, s.circle[0].imag, s.circle[1]) for s in figure.shapes if s.circle]
    # A dot is a very small circle; a text keeps clear of every point, its own included.
    rings += [(p.real, p.imag, 0.004) for p in at]
    segments = [(a.real, a.imag, b.real, b.imag) for a, b in strokes]
    return np.array(segments).reshape(-1, 4), np.array(rings).reshape(-1, 3)


def _sign(mark: Mark, at: list[complex]) -> list[tuple[complex, complex]]:
    if mark.kind == "square":
        p, q, r = at
        u, v = SQUARE * unit(p - q), SQUARE * unit(r - q)
        return [(q + u, q + u + v), (q + v, q + u + v)]
    if mark.kind == "arc":
        return _arc(*at, MARK_ARC)
    a, b = at
    across = 1j * TICK * unit(b - a)
    return [((a + b) / 2 - across, (a + b) / 2 + across)]


def _arc(a: complex, b: complex, c: complex, radius: float) -> list[tuple[complex, complex]]:
    """Chords of the arc that marks angle abc."""
    first, last = unit(a - b), unit(c - b)
    middle = unit(first + last)
    ways = (first, unit(first + middle), middle, unit(middle + last), last)
    return list(pairwise(b + radius * way for way in ways))


def _clearances(figure: Figure, texts: list[Text]) -> list[list[float]]:
    """For each text and place, the distance of its box from the nearest stroke; negative where it leaves the image."""
    places = np.array([p for text in texts for p in text.places])
    counts = [len(text.places) for text in texts]
    bounds = np.cumsum([0, *counts]).tolist()
    half = np.repeat(np.array([text.half for text in texts]), counts, axis=0)
    x, y, w, h = places.real[:, None], places.imag[:, None], half[:, :1], half[:, 1:]
    width, height = figure.room
    clear = np.minimum.reduce([x - w, width - x - w, y - h, height - y - h])[:, 0] - _EDGE + _CLEAR
    points = np.array(figure.points)
    for text, (start, stop) in zip(texts, pairwise(bounds)):
        if text.point is not None and len(points) > 1:
            away = np.abs(places[start:stop, None] - points)
            own = away[:, text.point].copy()
            away[:, text.point] = np.inf
            clear[start:stop] -= own > _NEARER * away.min(axis=1)
    segments, rings = obstacles(figure)
    if len(segments):
        apart = box_to_segments(x, y, w, h, segments)
        for text, (start, stop) in zip(texts, pairwise(bounds)):
            if text.own is not None:
                apart[start:stop, : len(figure.lines)] -= _ASIDE
                apart[start:stop, text.own] += _ASIDE
        clear = np.minimum(clear, apart.min(axis=1))
    if len(rings):
        cx, cy, r = rings.T
        dx, dy = np.abs(x - cx), np.abs(y - cy)
        near = np.hypot(np.maximum(dx - w, 0), np.maximum(dy - h, 0))
        far = np.hypot(dx + w, dy + h)
        clear = np.minimum(clear, np.maximum(near - r, r - far).min(axis=1))
    flat = clear.tolist()
    return [flat[a:b] for a, b in pairwise(bounds)]


def box_to_segments(x: np.ndarray, y: np.ndarray, w: np.ndarray, h: np.ndarray, segments: np.ndarray) -> np.ndarray:
    """Separation of boxes (centre x, y, half sizes w, h; each (N, 1)) from segments (S, 4): positive iff apart."""
    ax, ay, bx, by = segments.T
    length = np.hypot(bx - ax, by - ay)
    nx, ny = (ay - by) / length, (bx - ax) / length
    across = np.abs((x - ax) * nx + (y - ay) * ny) - (np.abs(nx) * w + np.abs(ny) * h)
    sideways = np.maximum(np.minimum(ax, bx) - x, x - np.maximum(ax, bx)) - w
    upright = np.maximum(np.minimum(ay, by) - y, y - np.maximum(ay, by)) - h
    return np.maximum(across, np.maximum(sideways, upright))
