"""Every answer, worked out again from the question's words and bare coordinates: no symbol of the figure is used.

Known of a figure are only: where each letter's point is, the two ends of each stroke, centre and radius of each circle,
the outlines of separate shapes, and where each text stands.
"""

import itertools
import math
import re

import numpy as np
import pytest

from gnomon.data.sources.diagrams.render import render
from gnomon.data.sources.diagrams.source import Diagrams

EPS = 1e-6
ITEMS = 40


class Seen:
    def __init__(self, item):
        figure = item.figure
        self.at = dict(zip(figure.names, figure.points))
        self.strokes = [line.ends for line in figure.lines]
        self.circles = [(circle.centre, circle.radius) for circle in figure.circles]
        self.shapes, self.texts, self.room = figure.shapes, item.texts, figure.room

    def on(self, stroke):
        return {name for name, p in self.at.items() if distance(p, *stroke) < EPS}

    def stroke(self, name):
        """The stroke that holds both points of a two-letter name."""
        return next(stroke for stroke in self.strokes if set(name) <= self.on(stroke))

    def circle(self, centre):
        return next((c, r) for c, r in self.circles if abs(c - self.at[centre]) < EPS)


def distance(p, a, b):
    t = max(0.0, min(1.0, ((p - a) * (b - a).conjugate()).real / abs(b - a) ** 2))
    return abs(p - a - t * (b - a))


def sine(one, two):
    u, v = one[1] - one[0], two[1] - two[0]
    return abs((u * v.conjugate()).imag) / abs(u) / abs(v)


def cosine(one, two):
    u, v = one[1] - one[0], two[1] - two[0]
    return abs((u * v.conjugate()).real) / abs(u) / abs(v)


def degrees(a, b, c):
    return math.degrees(abs(np.angle((a - b) / (c - b))))


def words(question):
    return re.findall(r"\b[A-Z]{1,4}\b", question.text.split("\n")[0])


def items(task, level, size=(224, 224), count=ITEMS):
    source = Diagrams(count=count, seed=21, tasks=[task], levels=[level], size=size)
    for index in range(count):
        item = source.compose(index)
        yield item, Seen(item), item.questions[0][1]


def each_level(task):
    return itertools.chain.from_iterable(items(task, level) for level in (1, 2, 3))


def test_point_on_line():
    for _, seen, question in each_level("point_on_line"):
        (name,) = words(question)
        assert question.answer == ", ".join(sorted(seen.on(seen.stroke(name)) - set(name)))


def test_point_on_circle():
    for _, seen, question in each_level("point_on_circle"):
        centre, radius = seen.circle(words(question)[0])
        on = [name for name, p in seen.at.items() if abs(abs(p - centre) - radius) < EPS]
        assert question.answer == ", ".join(sorted(on))


def test_angle():
    for _, seen, question in each_level("angle"):
        (name,) = words(question)
        size = degrees(*(seen.at[letter] for letter in name))
        assert 10 < size < 80 if question.answer == "acute" else 100 < size < 170
        # Both sides are drawn.
        assert seen.stroke(name[:2]) and seen.stroke(name[1:])


def test_longer():
    for _, seen, question in each_level("longer"):
        first, second = words(question)
        lengths = {name: abs(seen.at[name[0]] - seen.at[name[1]]) for name in (first, second)}
        assert lengths[question.answer] == max(lengths.values()) > 1.5 * min(lengths.values())
        assert seen.stroke(first) and seen.stroke(second)


@pytest.mark.parametrize(("task", "measure"), [("parallel", sine), ("perpendicular", cosine)])
def test_directions(task, measure):
    for _, seen, question in each_level(task):
        stroke = seen.stroke(words(question)[0])
        partners = [other for other in seen.strokes if other != stroke and measure(stroke, other) < EPS]
        names = {"".join(pair) for other in partners for pair in itertools.permutations(seen.on(other), 2)}
        assert question.answer == ", ".join(sorted(names)) and names
        # The reply says each name in one of its two orders.
        assert {"".join(sorted(name)) for name in names} == set(question.reply.split(", "))


def box_distance(text, a, b):
    """From a text's box to a segment, by walking along the segment."""
    away = a + (b - a) * np.linspace(0, 1, 400) - text.at
    x, y = np.abs(away.real) - text.half[0], np.abs(away.imag) - text.half[1]
    return np.hypot(np.maximum(x, 0), np.maximum(y, 0)).min()


def test_annotation_stands_at_what_is_asked():
    for item, seen, question in each_level("annotation"):
        (name,) = words(question)
        corners = [seen.at[letter] for letter in name]
        text = next(text for text in seen.texts if text.text == question.answer and text.text not in seen.at)
        if len(name) == 2:
            others = [stroke for stroke in seen.strokes if stroke != seen.stroke(name)]
            away = box_distance(text, *corners)
            assert all(box_distance(text, *other) > 1.3 * away for other in others)
        else:
            a, b, c = corners
            assert degrees(a, b, text.at) + degrees(text.at, b, c) == pytest.approx(degrees(a, b, c))
            angles = [note.text for note in item.figure.notes if len(note.ids) == 3]
            wedge = (a - b) / abs(a - b) + (c - b) / abs(c - b)
            off = {t.text: abs(np.angle((t.at - b) / wedge)) + abs(t.at - b) for t in seen.texts if t.text in angles}
            assert min(off, key=off.get) == question.answer


def test_relation_of_strokes_and_circles():
    kinds = set()
    for _, seen, question in each_level("relation"):
        right = question.meta["choices"]["ABCD".index(question.answer)]
        kinds.add(right)
        names = words(question)
        if question.text.startswith("How do the drawn lines"):
            assert right == lines(seen.stroke(names[0]), seen.stroke(names[1]))
        elif question.text.startswith("How does the drawn line"):
            assert right == line_and_circle(seen.stroke(names[0]), *seen.circle(names[1]))
        elif question.text.startswith("How do the circles"):
            assert right == circles(*seen.circle(names[0]), *seen.circle(names[1]))
        elif question.text.startswith("What is segment"):
            assert right == cevian(seen, *names)
        else:
            assert right == triangle_and_circle([seen.at[k] for k in names[0]], *seen.circle(names[1]))
    assert len(kinds) > 14


def lines(one, two):
    if sine(one, two) < EPS:
        return "they are parallel"
    u, v = one[1] - one[0], two[1] - two[0]
    s = ((two[0] - one[0]) * v.conjugate()).imag / (u * v.conjugate()).imag
    cut = one[0] + s * u
    if distance(cut, *one) > EPS or distance(cut, *two) > EPS:
        return "they do not meet and are not parallel"
    return "they meet at a right angle" if cosine(one, two) < EPS else "they meet, but not at a right angle"


def line_and_circle(stroke, centre, radius):
    u = stroke[1] - stroke[0]
    away = abs(((centre - stroke[0]) * u.conjugate()).imag) / abs(u)
    if distance(centre, *stroke) > radius + EPS:
        return "the line does not meet the circle"
    if abs(away - radius) < EPS:
        return "the line is tangent to the circle"
    return "the line passes through the centre" if away < EPS else "the line crosses the circle off its centre"


def circles(one, r, two, s):
    apart = abs(one - two)
    if abs(apart - r - s) < EPS:
        return "they touch from outside"
    if abs(apart - abs(r - s)) < EPS:
        return "they touch from inside"
    if apart > r + s:
        return "they lie apart without touching"
    inside = apart < abs(r - s)
    return "one lies inside the other without touching" if inside else "they cross at two points"


def cevian(seen, segment, triangle):
    top, foot = sorted(segment, key=lambda name: name not in triangle)
    b, c = (seen.at[name] for name in triangle if name != top)
    a, d = seen.at[top], seen.at[foot]
    if cosine((a, d), (b, c)) < EPS:
        return "an altitude"
    if abs(d - (b + c) / 2) < EPS:
        return "a median"
    return "an angle bisector" if abs(degrees(b, a, d) - degrees(d, a, c)) < EPS else "none of these"


def triangle_and_circle(corners, centre, radius):
    through = sum(abs(abs(p - centre) - radius) < EPS for p in corners)
    sides = list(zip(corners, [*corners[1:], corners[0]]))
    if all(line_and_circle(side, centre, radius).endswith("tangent to the circle") for side in sides):
        return "the circle is inscribed in the triangle"
    return {
        3: "the triangle is inscribed in the circle",
        2: "the circle passes through exactly two corners of the triangle",
        0: "the circle passes through no corner and touches no side",
    }[through]


def test_tangram():
    for _, seen, question in each_level("tangram"):
        joined = {
            frozenset(pair)
            for pair in itertools.combinations(seen.at, 2)
            if any(set(pair) <= seen.on(stroke) for stroke in seen.strokes)
        }
        triangles = [
            (a, b, c)
            for a, b, c in itertools.combinations(seen.at, 3)
            if {frozenset((a, b)), frozenset((b, c)), frozenset((a, c))} <= joined
            and sine((seen.at[a], seen.at[b]), (seen.at[a], seen.at[c])) > EPS
        ]
        counts = {
            "letters": len(seen.texts),
            "triangles": len(triangles),
            "circles": len(seen.circles),
            "line segments": len(joined),
        }
        assert question.answer == counts[question.predicate]
        assert f"How many {question.predicate} are" in question.text


def corners_of(shape):
    """Corners of a separate polygon; None for curves, solids and graphs."""
    rounded = shape.circle or len(shape.paths) != 1 or len(shape.paths[0]) > 9 or shape.filled or shape.dashed
    return None if rounded else list(shape.paths[0][:-1])


def test_count():
    plural = {"triangles": 3, "squares": 4, "pentagons": 5}
    checked = set()
    for _, seen, question in each_level("count"):
        answer = int(question.meta["choices"]["ABCD".index(question.answer)])
        thing = re.match(r"How many (labelled points|line segments|\w+)", question.text)[1]
        checked.add(thing)
        if thing in plural:
            assert answer == sum(len(corners_of(shape) or ()) == plural[thing] for shape in seen.shapes)
        elif thing == "circles":
            assert answer == sum(shape.circle is not None for shape in seen.shapes)
        elif thing == "bars":
            assert answer == len(seen.shapes[0].filled)
        elif thing == "line segments":
            assert answer == len(seen.strokes)
        elif thing == "labelled points":
            centre, radius = seen.circle(words(question)[0])
            assert answer == sum(abs(abs(p - centre) - radius) < EPS for p in seen.at.values())
        else:
            # Curved shapes differ in how many outlines and hidden edges they have.
            sort = {"ellipses": (1, 0), "cubes": (6, 3), "cones": (2, 1), "cylinders": (4, 1)}[thing]
            curved = [shape for shape in seen.shapes if not shape.circle and not corners_of(shape)]
            assert answer == sum((len(shape.paths), len(shape.dashed)) == sort for shape in curved)
    assert len(checked) > 8


@pytest.mark.parametrize("size", [(224, 224), (160, 280)])
@pytest.mark.parametrize("level", [1, 2])
def test_grounding_box_holds_the_ink(level, size):
    """Draw the one shape alone, without texts: its ink fills the box, to a stroke's width."""
    for item, seen, question in items("grounding", level, size):
        words_ = question.text.split(": ", 1)[1].split(". ")[0]
        named = re.match(r"the figure labelled (\w)", words_)
        said = words_.removeprefix("the ")
        shape = next(s for s in seen.shapes if (s.name == named[1] if named else s.kind.endswith(said)))
        alone = item.figure.copy()
        alone.shapes = [shape]
        image = render(alone, item.style, [], size)
        ink = np.abs(image.astype(int) - np.array(item.style.paper)).sum(2) > 90
        ys, xs = np.nonzero(ink)
        scale = np.array([size[1], size[0], size[1], size[0]]) / 999
        box = np.array(question.answer) * scale
        assert np.abs(box - [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]).max() < 4


def test_grounding_of_lettered_things():
    for _, seen, question in items("grounding", 3):
        name = re.search(r"(?:centre|triangle) ([A-Z]+)\.", question.text)[1]
        if len(name) == 1:
            centre, radius = seen.circle(name)
            spots = [centre - radius * (1 + 1j), centre + radius * (1 + 1j)]
        else:
            spots = [seen.at[letter] for letter in name]
        x = [p.real / seen.room[0] for p in spots]
        y = [p.imag / seen.room[1] for p in spots]
        box = np.array([min(x), min(y), max(x), max(y)]) * 999
        assert np.abs(box - question.answer).max() <= 0.5 + EPS


def test_transcript_redraws_the_picture():
    """Strokes drawn by their answer's coordinates fall on ink, and cover all of it."""
    for item, seen, question in items("transcribe", 2, (224, 224), 20):
        image = render(item.figure, item.style, [], (224, 224))
        ink = np.abs(image.astype(int) - np.array(item.style.paper)).sum(2) > 90
        covered = np.zeros_like(ink)

        def visit(x, y, ink=ink, covered=covered):
            column, row = round((x + 10) / 20 * 224), round((10 - y) / 20 * 224)
            assert ink[row - 2 : row + 3, column - 2 : column + 3].any()
            covered[row - 5 : row + 6, column - 5 : column + 6] = True

        for x1, y1, x2, y2 in question.answer["lines"]:
            for t in np.linspace(0, 1, 200):
                visit(x1 + t * (x2 - x1), y1 + t * (y2 - y1))
        for cx, cy, r in question.answer["circles"]:
            for t in np.linspace(0, 2 * math.pi, 200):
                visit(cx + r * math.cos(t), cy + r * math.sin(t))
        assert len(question.answer["lines"]) == len(seen.strokes)
        assert covered[ink].all()
