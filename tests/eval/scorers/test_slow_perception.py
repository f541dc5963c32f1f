"""The sheet's oracles and hand-made figures, official and strict."""

import pytest

from gnomon.eval.scorers.slow_perception import (
    Match,
    distance,
    merge,
    of_length,
    official,
    overlap,
    parse,
    score,
    strict,
)

DIAGONAL = ((0, 0), (4, 4))


@pytest.mark.parametrize(
    ("a", "b", "value"),
    [
        (DIAGONAL, ((0, 0), (4, 5)), 0.9),
        (DIAGONAL, ((0, 0), (5, 5)), 0.8),
        (((0, 0), (4, 0)), ((0, 0), (4, 0)), 0.5),
        (((0, 4), (4, 0)), DIAGONAL, 1.0),
        (((1, 1), (1, 1)), ((1, 1), (1, 1)), 0.0),
    ],
)
def test_overlap(a, b, value):
    assert overlap(a, b) == overlap(b, a) == pytest.approx(value)


def test_official_is_blind_to_axis_parallel_lines_and_strict_is_not():
    flat = [((0, 0), (4, 0))]
    assert official(flat, flat) == Match(0, 0, 0)
    assert strict(flat, flat) == Match(1, 1, 1)
    crossing = [((0, 4), (4, 0))]
    assert official(crossing, [DIAGONAL]).f1 == 1
    assert strict(crossing, [DIAGONAL]).f1 == 0


def test_official_thresholds():
    wanted = [DIAGONAL]
    assert official([((0, 0), (4, 5))], wanted, threshold=0.75).f1 == 1
    # an overlap of exactly 0.9 is not above it
    assert official([((0, 0), (4, 5))], wanted, threshold=0.9).f1 == 0


def test_official_is_greedy_in_the_order_of_the_prediction():
    wanted = [((0, 0), (4, 4)), ((0, 0), (5, 5))]
    # overlaps 0.9 and 0.9 with the two: the first takes index 0, as ties do, and leaves the other to the second
    assert official([((0, 0), (4.5, 4.5)), ((0, 0), (5, 5))], wanted).recall == 1
    match = official([((0, 0), (4, 4)), ((0, 0), (4, 4))], [((0, 0), (4, 4)), ((9, 9), (5, 3))])
    assert (match.precision, match.recall) == (0.5, 0.5)


def test_merge():
    # one line in three strokes with a gap, and another of the same slope
    strokes = [((0, 0), (1, 1)), ((3, 3), (4, 4)), ((1, 1), (2, 2)), ((0, 1), (1, 2))]
    assert merge(strokes) == [
        DIAGONAL,
        ((0, 1), (1, 2)),
    ]
    # vertical strokes replace one another; a stroke of no length is one of them
    assert merge([((1, 0), (1, 2)), ((0, 0), (4, 4)), ((1, 5), (1, 6))]) == [((1, 5), (1, 6)), DIAGONAL]
    assert merge([((1, 0), (1, 2)), ((1, 9), (1, 9))]) == [((1, 9), (1, 9))]


def test_strict_matching_is_global_and_symmetric():
    # reversed ends, 0.5 off on average, and one 0.51 off
    assert distance(((0, 0), (4, 0)), ((4, 0), (0, 0))) == 0
    assert strict([((4, 0), (1, 0))], [((0, 0), (4, 0))]).f1 == 1
    assert strict([((4, 0), (1.02, 0))], [((0, 0), (4, 0))]).f1 == 0
    # a greedy pass would give the first prediction the nearer line and leave the second with nothing
    wanted = [((0, 0), (8, 0)), ((0, 0.6), (8, 0.6))]
    assert strict([((0, 0.2), (8, 0.2)), ((0, -0.4), (8, -0.4))], wanted).recall == 1


def test_nothing_predicted_or_nothing_wanted():
    assert strict([], [DIAGONAL]) == official([], [DIAGONAL]) == Match(0, 0, 0)
    assert strict([DIAGONAL], []) == official([DIAGONAL], []) == Match(0, 0, 0)


def test_precision_recall_f1():
    found = [DIAGONAL, ((9, 9), (5, 3))]
    wanted = [DIAGONAL, ((0, 9), (9, 0)), ((-5, -5), (-9, -6))]
    assert strict(found, wanted) == Match(1 / 2, 1 / 3, pytest.approx(0.4))


def test_length_split():
    lines = [((0, 0), (8, 0)), ((0, 0), (7.9, 0))]
    assert of_length(lines, long=True) == lines[:1] and of_length(lines, long=False) == lines[1:]


def test_text():
    text = "Line:\n(0, 0) -- (4, 4)\n(-1.5, 2) -- (3, -4.25)\nCircle:\n(1, 2, 3.5)\n"
    assert parse(text) == ([[(0, 0), (4, 4)], [(-1.5, 2), (3, -4.25)]], [(1, 2, 3.5)])
    whole = score(text, reference=text)
    assert (
        whole.value == whole.detail["precision"] == whole.detail["official"] == whole.detail["official@0.9_recall"] == 1
    )
    assert score("a triangle", reference=text).parsed is None
    assert parse("(1, 2) -- (3 (4, 5) -- (x, y)") == ([], [])
    half = score("Line:\n(0, 0) -- (4, 4)", reference=text)
    assert half.value == pytest.approx(2 / 3) and half.detail["recall"] == 0.5 and half.parsed == "1 lines, 0 circles"


def test_gaze_points():
    """Ruler 4 on a line of length 10, and on a slanted one whose points are rounded."""
    slow = "Line:\n(0, 0) -- (4, 0) -- (8, 0) -- (10, 0)\n(0, 1) -- (2.8, 3.8) -- (6, 7)"
    plain = "Line:\n(0, 0) -- (10, 0)\n(0, 1) -- (6, 7)"
    assert parse(slow)[0][0] == [(0, 0), (4, 0), (8, 0), (10, 0)]
    assert score(slow, reference=plain).value == 1
    # collinear pieces are merged by the released rule too; the flat line is lost to its defect
    assert score(slow, reference=plain).detail["official_precision"] == 0.5
