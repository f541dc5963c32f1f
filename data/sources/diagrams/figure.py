"""Figure: the symbolic description of a diagram, from which every answer is computed.

Coordinates are in units of the image's shorter side, (0, 0) at its top left corner, y down.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from gnomon.data.sources.diagrams.plane import dot, segments_cross

# A direction, symbolically: (family, quarter). Equal headings are parallel, a family's two quarters perpendicular.
Heading = tuple[int, int]


class Rejected(Exception):
    """This draw holds a coincidence nobody intended, or does not fit; draw again."""


@dataclass(frozen=True)
class Line:
    """A whole straight stroke and the figure's points on it."""

    ends: tuple[complex, complex]
    points: tuple[int, ...]
    heading: Heading

    def with_point(self, point: int) -> Line:
        return Line(self.ends, (*self.points, point), self.heading)


@dataclass(frozen=True)
class Circle:
    centre: complex
    radius: float
    points: tuple[int, ...] = ()
    middle: int | None = None

    def with_point(self, point: int) -> Circle:
        return Circle(self.centre, self.radius, (*self.points, point), self.middle)


@dataclass(frozen=True)
class Shape:
    """A shape without points of its own: outlines as polylines (dashed: hidden edges), or a circle."""

    kind: str
    box: tuple[float, float, float, float]
    paths: tuple[tuple[complex, ...], ...] = ()
    dashed: tuple[tuple[complex, ...], ...] = ()
    filled: tuple[tuple[complex, ...], ...] = ()
    circle: tuple[complex, float] | None = None
    name: str | None = None
    # Where a name may stand, besides just outside the box.
    seat: complex | None = None


@dataclass(frozen=True)
class Mark:
    """A sign of equality ("ticks" on segment ids, "arc" at the middle id) or of a right angle ("square")."""

    kind: str
    ids: tuple[int, ...]
    count: int = 1


@dataclass(frozen=True)
class Note:
    """Text written at segment (a, b) or inside angle (a, b, c)."""

    text: str
    ids: tuple[int, ...]


@dataclass
class Figure:
    room: tuple[float, float]
    points: list[complex] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    lines: list[Line] = field(default_factory=list)
    circles: list[Circle] = field(default_factory=list)
    shapes: list[Shape] = field(default_factory=list)
    marks: list[Mark] = field(default_factory=list)
    notes: list[Note] = field(default_factory=list)
    # What the construction says, e.g. ("midpoint", m, a, b) or ("tangent", line, circle); check.confirm tries each.
    facts: list[tuple] = field(default_factory=list)
    families: int = 0

    def copy(self) -> Figure:
        return Figure(
            self.room, self.points[:], self.names[:], self.lines[:], self.circles[:], self.shapes[:], self.marks[:],
            self.notes[:], self.facts[:], self.families,
        )  # fmt: skip

    @property
    def size(self) -> tuple[int, int, int]:
        return len(self.points), len(self.lines), len(self.circles)

    def new_heading(self) -> Heading:
        self.families += 1
        return self.families, 0

    def name(self, point: int) -> str:
        return self.names[point]

    def along(self, line: Line) -> list[int]:
        """The points of a line in the order in which they lie on it."""
        start, stop = line.ends
        return sorted(line.points, key=lambda p: dot(self.points[p] - start, stop - start))

    def line_through(self, a: int, b: int) -> int | None:
        for index, line in enumerate(self.lines):
            if a in line.points and b in line.points:
                return index
        return None

    def parallel(self, i: int, j: int) -> bool:
        return i != j and self.lines[i].heading == self.lines[j].heading

    def perpendicular(self, i: int, j: int) -> bool:
        (family, quarter), (other, turned) = self.lines[i].heading, self.lines[j].heading
        return family == other and quarter != turned

    def segments(self) -> list[tuple[int, int]]:
        """Pairs of points joined by one stroke."""
        return [(a, b) for line in self.lines for k, a in enumerate(line.points) for b in line.points[k + 1 :]]

    def corners(self) -> list[tuple[int, int, int]]:
        """Angles (a, b, c) with both sides drawn, on different strokes."""
        found = []
        for i, first in enumerate(self.lines):
            for second in self.lines[i + 1 :]:
                for b in set(first.points) & set(second.points):
                    found += [(a, b, c) for a in first.points if a != b for c in second.points if c != b]
        return found

    def triangles(self) -> list[tuple[int, int, int]]:
        """Triples of points joined in pairs, not all by one stroke."""
        joined: dict[int, set[int]] = {}
        for a, b in self.segments():
            joined.setdefault(min(a, b), set()).add(max(a, b))
        on = [frozenset(line.points) for line in self.lines if len(line.points) > 2]
        return [
            (a, b, c)
            for a, after in sorted(joined.items()) for b in sorted(after) for c in sorted(after & joined.get(b, set()))
            if not any({a, b, c} <= points for points in on)
        ]  # fmt: skip

    def open_crossings(self) -> list[tuple[int, int]]:
        """Pairs of strokes that cross where no point is."""
        return [
            (i, j)
            for j, two in enumerate(self.lines)
            for i, one in enumerate(self.lines[:j])
            if segments_cross(*one.ends, *two.ends) and not set(one.points) & set(two.points)
        ]
