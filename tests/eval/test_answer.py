"""Each parser against the published vectors and against texts that small models really write."""

import pytest

from gnomon.eval.answer import box, lettered, lmms_number, official_number, strict_choice, strip_think, vk_number

OPTIONS = lettered(["red cube", "blue ball", "green cone", "none of these"])


@pytest.mark.parametrize(
    ("raw", "number"),
    [
        ("About 12", (None, 12, 12)),
        ("between 2 and 4", (None, 2, 4)),
        ("20 square meters, i.e. 215 sq ft", (20, 20, 215)),
        ("two", (None, 2, 2)),
        ("25e1", (250, 25, 250)),
        (".5", (0.5, 5, 0.5)),
        ("1,200", (None, 1, 200)),
        ("nan", (None, None, None)),
        ("3.", (3, 3, 3)),
        ("", (None, None, None)),
        ("<think>7 or 8</think> <answer>8</answer>, not 9", (None, 7, 8)),
        ("[4, 5]", (None, 4, 4)),
        ("someone counts two", (None, 2, 2)),
    ],
)
def test_numbers(raw, number):
    official, lmms, vk = number
    assert official_number(raw) == official
    assert lmms_number(raw) == lmms
    assert vk_number(raw) == vk


def test_compound_number_words():
    assert lmms_number("Twenty-one of them") == lmms_number("twenty one") == 21
    assert lmms_number("ninety apples") == 90 and lmms_number("seventeen") == 17


@pytest.mark.parametrize(
    ("raw", "letter"),
    [
        ("B", "B"),
        ("b", "B"),
        ("(B)", "B"),
        ("B)", "B"),
        ("B.", "B"),
        ("**B**", "B"),
        ("B. blue ball", "B"),
        ("The answer is B.", "B"),
        ("The correct answer is **C**.", "C"),
        ("I think it is the blue ball.", "B"),
        ("Based on the image, the answer is C", "C"),
        ("<think>A or B?</think> C", "C"),
        ("Answer: D", "D"),
        ("<answer>A</answer> because B is wrong", "A"),
        ("The answer is A. No, the answer is C.", "C"),
        ("A person is standing, so C", None),
        ("None of the above", None),
        ("a red cube and a blue ball", None),
        ("The answer is Every", None),
        ("E", None),
        ("", None),
        ("<think>B", None),
    ],
)
def test_strict_choice(raw, letter):
    assert strict_choice(raw, OPTIONS) == letter


def test_strip_think():
    assert strip_think("<think>x</think> y") == "y"
    assert strip_think("x</think> y") == "y"
    assert strip_think("<think>x") == ""


def test_box():
    assert box("[10, 20, 30, 40]") == (10, 20, 30, 40)
    assert box("first (1, 2, 3, 4), finally (30.5,40 ,10, 20)") == (10, 20, 30.5, 40)
    assert box("10, 20, 30") is None
