"""Closed forms, hand-computed values and exhaustive search against the metrics."""

import itertools
import math

import numpy as np
import pytest

from gnomon.eval.metrics import assign, bootstrap, iou, mcnemar, mra, resampled_means, standard_error, wilson


def test_wilson():
    assert wilson(60, 100) == pytest.approx((0.502, 0.691), abs=5e-4)
    # at the edges the closed form is n / (n + z^2)
    z2 = 1.959964**2
    assert wilson(0, 10) == pytest.approx((0, z2 / (10 + z2)))
    assert wilson(10, 10) == pytest.approx((10 / (10 + z2), 1))
    assert wilson(0, 0) == (0, 1)


def test_mcnemar():
    assert mcnemar(10, 2) == mcnemar(2, 10) == pytest.approx(0.0386, abs=5e-5)
    assert mcnemar(5, 5) == mcnemar(0, 0) == 1
    assert mcnemar(6, 0) == pytest.approx(2 / 64)


def test_standard_error():
    scores, groups = [1, 1, 0, 0], ["a", "a", "b", "b"]
    assert standard_error(scores) == pytest.approx(0.2887, abs=5e-5)
    assert standard_error(scores, groups) == pytest.approx(0.3819, abs=5e-5)
    assert standard_error(scores, [0, 1, 2, 3]) == pytest.approx(standard_error(scores))


def test_bootstrap_of_a_share_is_the_binomial():
    # 30 of 100 right: the resampled number of hits is binomial(100, 0.3), whose 2.5 % and 97.5 % points are 21 and 39
    low, high = bootstrap([1] * 30 + [0] * 70)
    assert (low, high) == pytest.approx((0.21, 0.39), abs=0.011)
    means = resampled_means([1] * 30 + [0] * 70, resamples=4000)
    assert means.std() == pytest.approx(math.sqrt(0.3 * 0.7 / 100), rel=0.05)


def test_bootstrap_is_seeded_and_keeps_groups_whole():
    scores = [1, 1, 1, 0, 0, 0]
    assert bootstrap(scores, seed=1) == bootstrap(scores, seed=1)
    # two images only: each resample is all right, all wrong, or one of each
    assert set(resampled_means(scores, [0, 0, 0, 1, 1, 1], resamples=200)) == {0, 0.5, 1}
    # groups of unequal size: a ratio of sums, not a mean of means
    assert set(resampled_means([1, 0, 0], ["a", "b", "b"], resamples=200)) == {0, 1 / 3, 1}


def test_bootstrap_in_chunks_equals_the_draws_at_once():
    scores = np.random.default_rng(0).random(3000)
    few = resampled_means(scores, resamples=2000)
    assert few.mean() == pytest.approx(scores.mean(), abs=1e-3) and len(set(few)) > 1900


@pytest.mark.parametrize(
    ("pair", "value"),
    [
        ((4, 4), 1), ((3, 4), 0.6), ((5, 4), 0.6), ((6, 4), 0.1), ((2, 4), 0.1), ((0, 4), 0), ((9, 10), 0.9),
        ((95, 100), 1), ((1.6, 2), 0.7), ((27, 20), 0.4), ((-3, -4), 0.6), ((4, -4), 0),
    ],
)  # fmt: skip
def test_mra(pair, value):
    assert mra(*pair) == value


def test_iou():
    box = (0, 0, 100, 100)
    assert iou(box, (0, 0, 100, 70)) == pytest.approx(0.70)
    assert iou(box, (0, 0, 100, 60)) == pytest.approx(0.60)
    assert iou(box, (10, 10, 110, 110)) == pytest.approx(0.6807, abs=5e-5)
    assert iou(box, (200, 0, 300, 100)) == 0
    assert iou((5, 5, 5, 5), (5, 5, 5, 5)) == 0


@pytest.mark.parametrize("shape", [(1, 1), (3, 3), (4, 2), (2, 5), (5, 5)])
def test_assignment_is_the_cheapest(shape):
    for seed in range(8):
        cost = np.random.default_rng(seed).random(shape)
        wide = cost if shape[0] <= shape[1] else cost.T
        best = min(
            sum(wide[i, j] for i, j in enumerate(columns))
            for columns in itertools.permutations(range(wide.shape[1]), wide.shape[0])
        )
        pairs = assign(cost)
        assert len(pairs) == min(shape) == len({i for i, _ in pairs}) == len({j for _, j in pairs})
        assert sum(cost[i, j] for i, j in pairs) == pytest.approx(best)


def test_assignment_of_nothing():
    assert assign(np.zeros((0, 3))) == [] == assign(np.zeros((3, 0)))
