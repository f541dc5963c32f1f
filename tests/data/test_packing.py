import random

import pytest

from gnomon.data.packing import pack, plan, utilisation


class Sized:
    def __init__(self, length: int) -> None:
        self.length = length

    def __len__(self) -> int:
        return self.length


def test_best_fit_decreasing_by_hand():
    # 7 opens a row, 6 another; 4 fits with the 6 only; 3 exactly fills the 7; 2 needs a third
    assert plan([2, 3, 4, 6, 7], 10) == [[4, 1], [3, 2], [0]]
    # 3 goes to the row with 3 left, not to the one with 5 left
    assert plan([5, 7, 3], 10) == [[1, 2], [0]]


def test_every_example_once_and_no_row_too_long():
    draw = random.Random(0)
    for _ in range(50):
        lengths = [draw.randint(1, 100) for _ in range(draw.randint(1, 80))]
        rows = plan(lengths, 100)
        assert sorted(i for row in rows for i in row) == list(range(len(lengths)))
        assert all(sum(lengths[i] for i in row) <= 100 for row in rows)
        # the guarantee of best-fit decreasing: 11/9 of the optimum, which is at least the volume, plus a row
        assert len(rows) <= 11 / 9 * max(-(-sum(lengths) // 100), sum(length > 50 for length in lengths)) + 4
        assert rows == plan(lengths, 100)


def test_utilisation():
    draw = random.Random(1)
    examples = [Sized(min(1024, int(draw.lognormvariate(5, 0.7)))) for _ in range(256)]
    rows = pack(examples, 2048)
    assert utilisation(rows, 2048) == sum(map(len, examples)) / (2048 * len(rows)) > 0.95


def test_too_long():
    with pytest.raises(ValueError, match="an example of 11 tokens does not fit a row of 10"):
        plan([3, 11], 10)
