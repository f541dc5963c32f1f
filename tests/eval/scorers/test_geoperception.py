"""The sheet's oracles, both scorers, and the traps of the released one."""

import itertools
from string import ascii_uppercase

import pytest

from gnomon.eval.scorers.geoperception import official, official_items, strict, strict_items

LINE = "What is the line perpendicular to line AB?"
POINT = "What is the point lying on line AB?"


@pytest.mark.parametrize(
    ("reference", "raw", "predicate", "value"),
    [
        ("C, D, E", "The other points are: C, D", "PointLiesOnLine", 2 / 3),
        ("C, D, E", "The other points are: C, F", "PointLiesOnLine", 0),
        ("BC, CB, DE, ED", "The line is: BC", "Perpendicular", 0.5),
        ("acute", "an acute angle", "AngleClassification", 1),
        ("BC, CB", "The longer line is: BC", "LineComparison", 1),
        ("2x+4", "The annotation is: 2x+4", "Equals", 1),
        ("C", "The another point is: C", "PointLiesOnLine", 1),
        ("C, D", "The points are: C, D.", "PointLiesOnCircle", 1),
        ("C, D", "E", "PointLiesOnCircle", 0),
        ("C, D", "", "PointLiesOnCircle", 0),
        ("acute", "obtuse", "AngleClassification", 0),
    ],
)
def test_oracles(reference, raw, predicate, value):
    question = POINT if predicate == "PointLiesOnLine" else LINE
    assert strict(raw, reference=reference, predicate=predicate, question=question).value == pytest.approx(value)
    assert official(raw, reference=reference, predicate=predicate, question=question) == pytest.approx(value)


def test_points_of_the_question_are_dropped_for_lines_alone():
    for scorer in (official, lambda *a, **k: strict(*a, **k).value):
        assert scorer("A, B, C", reference="C", predicate="PointLiesOnLine", question=POINT) == 1
        assert scorer("A, B, C", reference="C", predicate="PointLiesOnCircle", question=POINT) == 0
        assert scorer("A", reference="C", predicate="PointLiesOnLine", question=POINT) == 0


def test_this_is_cut_by_the_official_rule_alone():
    raw = "In this diagram the longer line is BC"
    assert official_items(raw) == ["diagramthelongerline"]
    assert official(raw, reference="BC, CB", predicate="LineComparison", question=LINE) == 0
    assert strict(raw, reference="BC, CB", predicate="LineComparison", question=LINE).value == 1


def test_permuted_letters_are_one_item():
    assert strict("BC, CB", reference="BC, CB, DE, ED", predicate="Parallel", question=LINE).value == 0.5
    # the reference may name one direction only; the same line is still right
    assert strict("CB", reference="BC", predicate="Parallel", question=LINE).value == 1
    assert official("CB", reference="BC", predicate="Parallel", question=LINE) == 0


def test_official_counts_some_lines_twice():
    """6 to 14 % of the pairs of letters, whatever order the set lists them in."""
    pairs = list(itertools.combinations(ascii_uppercase, 2))
    full = [official(f"{a}{b}", reference=f"{a}{b}, {b}{a}", predicate="Parallel", question=LINE) for a, b in pairs]
    assert set(full) == {0.5, 1}
    assert 0.06 <= full.count(0.5) / len(pairs) <= 0.14


def test_annotations_are_exact_in_strict_and_a_bag_of_letters_in_official():
    swapped = {
        "reference": "2x+4, 4x+2",
        "predicate": "Equals",
        "question": "What is the length of line AB as annotated?",
    }
    assert strict("4x+2", reference="2x+4", predicate="Equals", question=LINE).value == 0
    assert official("2x+4", **swapped) == 1
    assert strict("2x+4", **swapped).value == 0.5
    assert strict("The annotation is: 90°", reference="90", predicate="Equals", question=LINE).value == 1


def test_angles():
    ask = {"reference": "obtuse", "predicate": "AngleClassification", "question": "Is angle ABC acute or obtuse?"}
    assert strict("The angle is: Obtuse.", **ask).value == 1
    assert strict("acute or obtuse", **ask).parsed is None
    assert strict("a wide one", **ask).parsed is None
    # whatever is said, the official rule hears one of the two; on a tie the first
    assert official("", **ask) == 0
    assert official("", **(ask | {"reference": "acute"})) == 1


@pytest.mark.parametrize(
    ("raw", "items"),
    [
        ("C, D", ["C", "D"]),
        ("The points are C, D and E.", ["C", "D", "E"]),
        ("The lines are: BC, and DE", ["BC", "DE"]),
        ('The line is: "BC".', ["BC"]),
        ("line BC", ["BC"]),
        ("\n\nAB", ["AB"]),
        ("I do not know", []),
        ("", []),
    ],
)
def test_strict_items(raw, items):
    assert strict_items(raw) == items


def test_prose_is_unparsed_and_wrong():
    score = strict("I cannot see any line", reference="BC, CB", predicate="Parallel", question=LINE)
    assert (score.value, score.parsed) == (0, None)
