"""Numbers by VSI-Bench's thresholds, choices by letter or name."""

import pytest

from gnomon.eval.scorers.scenes import choice, number, word


@pytest.mark.parametrize(
    ("raw", "value"),
    [
        ("2.00", 1.0),
        # 10 % off: within all thresholds but 0.95
        ("about 2.2 metres", 0.9),
        ("2.9", 0.2),
        ("4", 0.0),
        ("<think>9 or 8</think>two", 1.0),
        ("far", 0.0),
    ],
)
def test_number(raw, value):
    assert number(raw, reference=2.0).value == pytest.approx(value)


def test_details_of_numbers():
    score = number("3", reference=4)
    assert score.parsed == "3" and score.detail == {"exact": 0.0, "relative_error": 0.25}
    assert number("4 objects", reference=4).detail["exact"] == 1
    silent = number("", reference=4)
    assert silent.parsed is None and silent.detail == {"exact": 0.0}


@pytest.mark.parametrize(
    ("raw", "value", "parsed"),
    [("B", 1, "B"), ("The answer is B.", 1, "B"), ("the blue can", 1, "B"), ("A", 0, "A"), ("both", 0, None)],
)
def test_choice(raw, value, parsed):
    score = choice(raw, reference="B", choices=["red ball", "blue can"])
    assert (score.value, score.parsed) == (value, parsed)


@pytest.mark.parametrize(("raw", "value"), [("Blue can.", 1), ("<answer>blue can</answer>", 1), ("a can", 0), ("", 0)])
def test_word(raw, value):
    assert word(raw, reference="blue can").value == value
