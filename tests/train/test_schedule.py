from __future__ import annotations

import math

import pytest

from gnomon.train.schedule import Schedule, warmup_steps


def test_warmup_rises_to_the_peak_and_the_cosine_falls_to_the_floor():
    schedule = Schedule(total=104, warmup=4, floor=0.1)
    assert [schedule.factor(step) for step in range(5)] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert schedule.factor(54) == pytest.approx(0.1 + 0.9 * 0.5)
    assert schedule.factor(29) == pytest.approx(0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi / 4)))
    assert schedule.factor(104) == pytest.approx(0.1)


def test_constant_stays_at_the_peak():
    assert [Schedule(total=9, warmup=2, kind="constant").factor(step) for step in range(4)] == [0.5, 1.0, 1.0, 1.0]


@pytest.mark.parametrize(
    ("warmup", "total", "steps"), [(0.03, 100, 3), (0.03, 10, 1), (0.0, 10, 0), (20, 100, 20), (20, 5, 5)]
)
def test_warmup_is_a_share_or_a_number(warmup, total, steps):
    assert warmup_steps(warmup, total) == steps


def test_mistakes_are_told():
    with pytest.raises(ValueError, match="0 steps"):
        Schedule(total=0)
    with pytest.raises(ValueError, match="negative"):
        warmup_steps(-1, 10)
