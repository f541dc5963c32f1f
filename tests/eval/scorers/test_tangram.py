"""The sheet's four counts: three right, one off by one."""

import pytest

from gnomon.eval.scorers.tangram import strict


def test_oracle():
    truth, said = (4, 3, 1, 6), ("4", "2", "1", "There are 6 segments.")
    scores = [strict(raw, reference=count) for raw, count in zip(said, truth)]
    assert sum(s.value for s in scores) / 4 == 0.75
    assert sum(s.detail["absolute_error"] for s in scores) / 4 == 0.25
    assert [s.detail["off_by_one"] for s in scores] == [1, 1, 1, 1]


@pytest.mark.parametrize(("raw", "value", "parsed"), [
    ("three", 1, "3"),
    ("3.0", 1, "3"),
    ("3.5", 0, "3.5"),
    ("<think>1, 2</think>3", 1, "3"),
    ("many", 0, None),
    ("", 0, None),
])  # fmt: skip
def test_reading(raw, value, parsed):
    score = strict(raw, reference=3)
    assert (score.value, score.parsed) == (value, parsed)
    assert ("absolute_error" in score.detail) == (parsed is not None)
