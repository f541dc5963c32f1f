from collections import Counter

import pytest

from gnomon.data.sources.mixture import Mixture


@pytest.fixture
def parts(numbers):
    return [numbers(10, images=False), numbers(40, images=False)]


def counted(mixture):
    ids, first = [sample.id for sample in mixture], mixture.counts[0]
    return Counter(ids[:first]), Counter(ids[first:])


def test_without_weights_it_is_one_after_the_other(parts):
    mixture = Mixture(parts)
    assert [s.id for s in mixture] == [str(i) for i in range(10)] + [str(i) for i in range(40)]


def test_weights_are_the_shares_and_no_source_is_cut_short(parts):
    mixture = Mixture(parts, weights=[1, 3])
    # 40 / 0.75 = 53.3 samples hold the second source once
    assert len(mixture) == 54 and mixture.counts == [14, 40]
    first, second = counted(mixture)
    assert set(first.values()) == {1, 2} and len(first) == 10 and len(second) == 40


def test_repeats_and_thinning(parts):
    mixture = Mixture(parts, weights=[3, 1], length=40)
    first, second = counted(mixture)
    assert mixture.counts == [30, 10] and set(first.values()) == {3}
    assert sorted(map(int, second)) == list(range(0, 40, 4))


def test_rounding_gives_every_sample_away(numbers):
    parts = [numbers(5, images=False)] * 3
    for length in range(1, 30):
        counts = Mixture(parts, weights=[1, 1, 1.5], length=length).counts
        assert sum(counts) == length
        assert all(abs(n - length * w / 3.5) < 1 for n, w in zip(counts, (1, 1, 1.5)))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"weights": [1]}, "do not fit 2 sources"),
        ({"weights": [1, 0]}, "do not fit 2 sources"),
        ({"weights": [1, float("nan")]}, "do not fit 2 sources"),
        ({"length": 0}, "length 0 is too small"),
    ],
)
def test_user_mistakes(parts, options, says):
    with pytest.raises(ValueError, match=says):
        Mixture(parts, **options)


def test_empty(numbers):
    for sources in ([], [numbers(0)]):
        with pytest.raises(ValueError, match="empty one or none"):
            Mixture(sources)
