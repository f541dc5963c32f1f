"""Dice against numpy's own generator, and streams that do not depend on one another."""

from collections import Counter

import numpy as np

from gnomon.data.sources.diagrams.dice import Dice


def test_units_are_those_of_numpys_philox():
    ours = Dice(seed=11, split=1, index=5)
    theirs = np.random.Generator(np.random.Philox(key=11, counter=[0, 0, 5, 1]))
    assert [ours.unit() for _ in range(300)] == theirs.random(300).tolist()


def test_seed_split_and_index_each_change_the_stream():
    first = {Dice(seed, split, index).unit() for seed in range(4) for split in range(2) for index in range(50)}
    assert len(first) == 4 * 2 * 50


def test_draws_are_uniform():
    dice = Dice(0, 0, 0)
    assert {dice.integer(3, 6) for _ in range(200)} == {3, 4, 5, 6}
    picked = Counter(dice.weighted((1, 0, 3)) for _ in range(4000))
    assert picked[1] == 0 and 2700 < picked[2] < 3300
    first = Counter(dice.sample("abcd", 2)[0] for _ in range(4000))
    assert min(first.values()) > 850 and sorted(dice.shuffled("abcd")) == list("abcd")
