"""Slow Perception SP-1: redraw a figure as the coordinates of its lines.

Paper:   Slow Perception: Let's Perceive Geometric Figures Step-by-step. arXiv:2412.20631
Rule:    `official`: merge the predicted strokes of one line, match greedily by the mean IoU of the two projections, a
         match above 0.75 (or 0.9); precision, recall and F1 per image; also for lines shorter than 8 and the others
Differs: `official` keeps the released scorer's defects: vertical strokes replace one another, axis-parallel lines reach
         at most 0.5 and never match, two crossing diagonals of a box are the same line. `strict`, the headline, pairs
         lines one to one by the mean distance of their ends, either way round, and counts the pairs within 0.5 units;
         a line told with gaze points goes from the first to the last of them
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from gnomon.eval.answer import strip_think
from gnomon.eval.benchmark import Score
from gnomon.eval.metrics import assign

Point = tuple[float, float]
Line = tuple[Point, Point]
Circle = tuple[float, float, float]

TOLERANCE = 0.5
LONG = 8.0
_NUMBER = r"\s*(-?\d+(?:\.\d+)?)\s*"
_CHAIN = re.compile(r"\([^()]*\)(?:\s*--\s*\([^()]*\))+")
_POINT = re.compile(rf"\({_NUMBER},{_NUMBER}\)")
_CIRCLE = re.compile(rf"\({_NUMBER},{_NUMBER},{_NUMBER}\)")


@dataclass(frozen=True)
class Match:
    precision: float
    recall: float
    f1: float


def parse(raw: str) -> tuple[list[list[Point]], list[Circle]]:
    """Every `(x1, y1) -- (x2, y2)`, with gaze points in between or without, and every `(cx, cy, r)` of the text."""
    text = strip_think(raw)
    chains = [[(float(x), float(y)) for x, y in _POINT.findall(chain)] for chain in _CHAIN.findall(text)]
    circles = [(float(x), float(y), float(r)) for x, y, r in _CIRCLE.findall(text)]
    return [chain for chain in chains if len(chain) > 1], circles


def score(raw: str, *, reference: str) -> Score:
    """F1 of the strict matching, with precision, recall and the official numbers beside it."""
    chains, circles = parse(raw)
    wanted = [(chain[0], chain[-1]) for chain in parse(reference)[0]]
    found = strict([(chain[0], chain[-1]) for chain in chains], wanted)
    merged = merge([stroke for chain in chains for stroke in pairwise(chain)])
    detail = {"precision": found.precision, "recall": found.recall}
    for name, threshold in (("official", 0.75), ("official@0.9", 0.9)):
        at = official(merged, wanted, threshold=threshold)
        detail |= {name: at.f1, f"{name}_precision": at.precision, f"{name}_recall": at.recall}
    for name, long in (("official_short", False), ("official_long", True)):
        detail[name] = official(of_length(merged, long=long), of_length(wanted, long=long)).f1
    parsed = f"{len(chains)} lines, {len(circles)} circles" if chains or circles else None
    return Score(found.f1, parsed, detail)


def strict(predicted: list[Line], wanted: list[Line]) -> Match:
    cost = np.array([[distance(a, b) for b in wanted] for a in predicted]).reshape(len(predicted), len(wanted))
    # pairs out of reach all cost the same, so that the pairing maximises the number of matches first
    capped = np.where(cost <= TOLERANCE + 1e-9, cost, 1e6)
    hits = sum(cost[i, j] <= TOLERANCE + 1e-9 for i, j in assign(capped))
    return _match(int(hits), len(predicted), len(wanted))


def distance(a: Line, b: Line) -> float:
    """Mean distance of the ends, the lines laid either way round."""
    straight = math.dist(a[0], b[0]) + math.dist(a[1], b[1])
    crossed = math.dist(a[0], b[1]) + math.dist(a[1], b[0])
    return min(straight, crossed) / 2


def official(predicted: list[Line], wanted: list[Line], *, threshold: float = 0.75) -> Match:
    used: set[int] = set()
    for line in predicted:
        free = [(overlap(line, other), -i) for i, other in enumerate(wanted) if i not in used]
        best, index = max(free, default=(0.0, 0))
        if best > threshold:
            used.add(-index)
    return _match(len(used), len(predicted), len(wanted))


def _match(hits: int, predicted: int, wanted: int) -> Match:
    precision = hits / predicted if predicted else 0.0
    recall = hits / wanted if wanted else 0.0
    f1 = 2 * precision * recall / (precision + recall) if hits else 0.0
    return Match(precision, recall, f1)


def overlap(a: Line, b: Line) -> float:
    """Mean of the IoUs of the projections on x and on y; an empty union counts 0."""
    total = 0.0
    for axis in (0, 1):
        low_a, high_a = sorted((a[0][axis], a[1][axis]))
        low_b, high_b = sorted((b[0][axis], b[1][axis]))
        union = max(high_a, high_b) - min(low_a, low_b)
        if union > 0:
            total += max(0.0, min(high_a, high_b) - max(low_a, low_b)) / union
    return total / 2


def merge(strokes: list[Line]) -> list[Line]:
    """Strokes of equal slope and intercept become one, from the smallest end to the largest, across gaps too."""
    lines: dict[tuple[float, float], Line] = {}
    for start, end in strokes:
        if start[0] == end[0]:
            # an infinite slope never equals another within a tolerance: the last vertical stroke of an x stays alone
            lines[math.inf, start[0]] = (start, end)
            continue
        slope = (end[1] - start[1]) / (end[0] - start[0])
        intercept = start[1] - slope * start[0]
        same = (k for k in lines if abs(k[0] - slope) < 1e-4 and abs(k[1] - intercept) < 1e-4)
        key = next(same, None)
        if key is None:
            lines[slope, intercept] = (start, end)
        else:
            first, last = lines[key]
            lines[key] = (min(first, start, end), max(last, start, end))
    return list(lines.values())


def of_length(lines: list[Line], *, long: bool) -> list[Line]:
    return [line for line in lines if (math.dist(*line) >= LONG) == long]
