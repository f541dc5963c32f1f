"""Constructions on figures computed by hand, and draws that must be refused."""

import math

import pytest

from gnomon.data.sources.diagrams import construct
from gnomon.data.sources.diagrams.check import confirm, settle
from gnomon.data.sources.diagrams.figure import Figure, Rejected
from gnomon.data.sources.diagrams.tasks.tangram import counts


def right_triangle() -> Figure:
    """Legs 0.3 and 0.4, so hypotenuse 0.5: corner 0 holds the right angle."""
    figure = Figure((1.0, 1.0))
    for at in (0.2 + 0.2j, 0.6 + 0.2j, 0.2 + 0.5j):
        construct.free(figure, at)
    construct.segment(figure, 0, 1, (1, 0))
    construct.segment(figure, 1, 2, (2, 0))
    construct.segment(figure, 2, 0, (1, 1))
    figure.families = 2
    return figure


def test_circumcircle_of_a_right_triangle_is_centred_on_the_hypotenuse():
    figure = right_triangle()
    circle = figure.circles[construct.circumcircle(figure, 0, 1, 2)]
    assert circle.centre == pytest.approx(0.4 + 0.35j) and circle.radius == pytest.approx(0.25)


def test_incircle_of_a_3_4_5_triangle_has_radius_1():
    figure = right_triangle()
    circle = figure.circles[construct.incircle(figure, 0, 1, 2, touch_points=3)]
    assert circle.radius == pytest.approx(0.1) and circle.centre == pytest.approx(0.3 + 0.3j)
    touches = [figure.points[k] for k in circle.points]
    assert touches[0] == pytest.approx(0.3 + 0.2j) and touches[2] == pytest.approx(0.2 + 0.3j)
    confirm(figure)


def test_altitude_to_the_hypotenuse():
    figure = right_triangle()
    foot = construct.drop_foot(figure, 0, 1)
    # Twice the area over the hypotenuse.
    assert abs(figure.points[foot] - figure.points[0]) == pytest.approx(0.3 * 0.4 / 0.5)
    assert figure.perpendicular(1, 3) and not figure.parallel(1, 3)
    settle(figure)


def test_tangents_from_a_point_have_the_length_of_pythagoras():
    figure = Figure((2.0, 2.0))
    p, o = construct.free(figure, 0.3 + 1j), construct.free(figure, 1.3 + 1j)
    ring = construct.circle(figure, 1.3 + 1j, 0.6, o)
    touches = construct.tangents_from(figure, p, ring, radii=True)
    assert [abs(figure.points[t] - figure.points[p]) for t in touches] == pytest.approx([0.8, 0.8])
    assert figure.perpendicular(figure.line_through(p, touches[0]), figure.line_through(o, touches[0]))
    confirm(figure)


def test_bisector_cuts_the_side_in_the_ratio_of_its_neighbours():
    figure = right_triangle()
    foot = figure.points[construct.bisector(figure, 1, 0, 2)]
    assert abs(foot - figure.points[1]) / abs(foot - figure.points[2]) == pytest.approx(0.4 / 0.3)
    confirm(figure)


def test_parallel_perpendicular_midpoint_crossing_and_tangent():
    figure = right_triangle()
    made = construct.parallel_through(figure, 2, 0, 0.3)
    assert figure.parallel(made, 0) and figure.points[-1] == pytest.approx(0.5 + 0.5j)
    made = construct.perpendicular_through(figure, 1, 0, 0.2)
    assert figure.perpendicular(made, 0) and figure.parallel(made, 2)
    middle = construct.midpoint(figure, 1, 2)
    assert figure.points[middle] == pytest.approx(0.4 + 0.35j)
    diagonal = construct.segment(figure, 0, len(figure.points) - 3)
    crossing = figure.points[construct.crossing(figure, diagonal, 1)]
    # y - 0.2 = x - 0.2 meets x / 0.4 + y / 0.3 = 2.1667 (the hypotenuse).
    assert crossing == pytest.approx(0.2 + 12 / 70 + (0.2 + 12 / 70) * 1j)
    ring = construct.circle(figure, 0.8 + 0.8j, 0.1)
    line = construct.tangent_at(figure, construct.on_circle(figure, ring, 90), ring, 0.1, 0.1)
    assert [end.imag for end in figure.lines[line].ends] == pytest.approx([0.9, 0.9])
    confirm(figure)


@pytest.mark.parametrize(
    ("at", "why"),
    [
        (0.25 + 0.25j, "too near"),
        (0.4 + 0.23j, "on a line"),
        (0.02 + 0.5j, "outside"),
        (0.4 + 0.16j, "nearly on a line"),
    ],
)
def test_a_point_in_a_doubtful_place_is_refused(at, why):
    figure = right_triangle()
    settle(figure)
    construct.free(figure, at)
    with pytest.raises(Rejected, match=why):
        settle(figure)


@pytest.mark.parametrize(("degrees", "refused"), [(3, True), (87, True), (30, False)])
def test_a_direction_nearly_parallel_or_perpendicular_is_refused(degrees, refused):
    figure = Figure((1.0, 1.0))
    way = complex(math.cos(math.radians(degrees)), math.sin(math.radians(degrees)))
    for at in (0.2 + 0.3j, 0.6 + 0.3j, 0.3 + 0.5j, 0.3 + 0.5j + 0.3 * way):
        construct.free(figure, at)
    construct.segment(figure, 0, 1)
    construct.segment(figure, 2, 3)
    if refused:
        with pytest.raises(Rejected, match="direction"):
            settle(figure)
    else:
        settle(figure)


def test_a_right_angle_that_nobody_claims_is_refused_and_a_false_claim_fails():
    figure = right_triangle()
    figure.lines[2] = construct.Line(figure.lines[2].ends, figure.lines[2].points, (3, 0))
    with pytest.raises(Rejected, match="direction"):
        settle(figure)
    figure.facts.append(("midpoint", 0, 1, 2))
    with pytest.raises(AssertionError, match="midpoint"):
        confirm(figure)


def test_counts_of_a_triangle_with_one_cevian():
    """Triangle ABC with D on BC: 4 letters, 3 triangles, 6 segments between letters, 4 strokes."""
    figure = right_triangle()
    construct.segment(figure, 0, construct.between(figure, 1, 2, 0.4))
    assert counts(figure) == {"letters": 4, "triangles": 3, "circles": 0, "line segments": 6}
    assert len(figure.lines) == 4
