"""Letters, and the sheet's three boxes on either side of the threshold."""

import pytest

from gnomon.eval.answer import lettered
from gnomon.eval.scorers.mathglance import choice, grounding, word


@pytest.mark.parametrize(
    ("raw", "overlap", "value"),
    [
        ("[0, 0, 100, 70]", 0.70, 1),
        ("[0, 0, 100, 60]", 0.60, 0),
        ("(10, 10), (110, 110) or 10 10 110 110", 0.6807, 1),
    ],
)
def test_grounding(raw, overlap, value):
    score = grounding(raw, reference=(0, 0, 100, 100))
    assert score.detail["iou"] == pytest.approx(overlap, abs=5e-5) and score.value == value


def test_grounding_without_a_box():
    score = grounding("the upper left corner", reference=(0, 0, 100, 100))
    assert (score.value, score.parsed, score.detail) == (0, None, {"iou": 0})


def test_choice():
    options = lettered(["square", "circle", "cone", "prism"])
    assert choice("The answer is B.", reference="B", options=options).value == 1
    assert choice("a circle", reference="B", options=options).value == 1
    assert choice("C", reference="B", options=options).value == 0
    assert choice("hm", reference="B", options=options).parsed is None


@pytest.mark.parametrize(
    ("raw", "value"),
    [("kite", 1), (" Kite.", 1), ("<answer>kite</answer>", 1), ("a kite or a rhombus", 0), ("rhombus", 0), ("", 0)],
)
def test_word(raw, value):
    assert word(raw, reference="kite").value == value
