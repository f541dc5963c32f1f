from itertools import islice

import numpy as np
import pytest

from gnomon.data.order import Order, permute


@pytest.mark.parametrize("length", [1, 2, 3, 4, 5, 16, 17, 63, 64, 65, 1000, 4097])
def test_permute_is_a_permutation(length):
    for key in ((0, 0), (0, 1), (7, 0)):
        assert sorted(permute(i, length, key=key) for i in range(length)) == list(range(length))


def test_permute_is_fixed_for_all_time():
    # a run resumed on another machine or release must go on with the same samples
    assert [permute(i, 10, key=(0, 0)) for i in range(10)] == [0, 5, 3, 7, 6, 1, 9, 8, 4, 2]


def test_permute_looks_uniform():
    length, keys = 16, 2000
    counts = np.zeros((length, length))
    for key in range(keys):
        for i in range(length):
            counts[i, permute(i, length, key=(key, 0))] += 1
    # chi-square with (16-1)^2 = 225 degrees of freedom: mean 225, deviation 21
    expected = keys / length
    assert 225 - 5 * 21 < ((counts - expected) ** 2 / expected).sum() < 225 + 5 * 21


def test_epochs_differ_and_neighbours_scatter():
    first, second = ([permute(i, 10_000, key=(3, epoch)) for i in range(10_000)] for epoch in (0, 1))
    assert sum(a == b for a, b in zip(first, second)) < 20
    assert abs(np.corrcoef(first[:-1], first[1:])[0, 1]) < 0.05


def step_content(order: Order, step: int, worlds: int) -> list[int]:
    """What all ranks take in a step, in the order of micro-batches and ranks."""
    ranks = [Order(**{**order.__dict__, "rank": rank}) for rank in range(worlds)]
    return [i for micro in range(order.accumulate) for rank in ranks for i in rank.ids(step, micro)]


@pytest.mark.parametrize("step", [0, 1, 5, 1000])
def test_content_of_a_step_does_not_depend_on_how_it_is_split(step):
    splits = [(1, 4, 2), (2, 2, 2), (4, 1, 2), (1, 1, 8), (8, 1, 1), (2, 1, 4)]
    contents = [
        step_content(Order(103, seed=5, batch=batch, accumulate=accumulate, world=world), step, world)
        for world, accumulate, batch in splits
    ]
    assert all(content == contents[0] for content in contents)


def test_every_epoch_sees_every_sample_once():
    order = Order(10, seed=1, batch=3)
    stream = [i for ids in islice(order.stream(), 10) for i in ids]
    assert len(stream) == 30
    for epoch in range(3):
        assert sorted(stream[epoch * 10 : epoch * 10 + 10]) == list(range(10))
    assert stream[:10] != stream[10:20]
    assert order.steps_per_epoch == 4


def test_a_step_larger_than_the_source():
    assert sorted(Order(3, batch=6).ids(0)) == [0, 0, 1, 1, 2, 2]


def test_resuming_is_starting_later():
    order = Order(50, seed=2, batch=3, accumulate=2, world=2, rank=1)
    whole = list(islice(order.stream(), 40))
    assert list(islice(order.stream(7), 26)) == whole[14:]


def test_without_shuffling():
    order = Order(5, batch=2, accumulate=2, shuffle=False)
    assert list(islice(order.stream(), 4)) == [[0, 1], [2, 3], [4, 0], [1, 2]]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"length": 0}, "source is empty"),
        ({"length": 5, "batch": 0}, "batch 0 is too small"),
        ({"length": 5, "accumulate": -1}, "accumulate -1 is too small"),
        ({"length": 5, "world": 2, "rank": 2}, "rank 2 is not one of 2 ranks"),
        ({"length": 5, "seed": -1}, "seed -1 is negative"),
    ],
)
def test_user_mistakes(options, says):
    with pytest.raises(ValueError, match=says):
        Order(**options)
