"""Rows of a table against hand-computed means, baselines and intervals."""

import pytest

from gnomon.eval.benchmark import Benchmark, Item, Score, Scored
from gnomon.eval.metrics import bootstrap, wilson


class Letters(Benchmark):
    """Half a point for the other case, so that the best constant is not always the commonest answer."""

    name = overall = "letters"
    protocol = "test"

    def score(self, raw: str, item: Item) -> Score:
        value = 1.0 if raw == item.reference else 0.5 if raw.lower() == item.reference.lower() else 0.0
        return Score(value, raw or None, {"length": float(len(raw))})


def scored(task, answers, *, said, level=1, chance=None, family="f"):
    out = []
    for number, (answer, raw) in enumerate(zip(answers, said)):
        item = Item(f"{task}{number}", family, f"{family}/{task}", level, "?", answer, answer, chance=chance)
        out.append(Scored(item, Letters().score(raw, item), f"{task}{level}{number // 2}"))
    return out


def test_rows_and_family_mean():
    one = scored("one", "ABBA", said="ABBB", chance=0.25)
    two = scored("two", "abBB", said=["a", "", "B", "B"], chance=0.5)
    rows = Letters().summary([*one, *two])
    assert [row.name for row in rows] == ["f/one", "f/two", "f"]
    first, second, mean = rows
    assert (first.score, second.score, mean.score) == (0.75, 0.75, 0.75)
    # constant A: 2 of 4; constant b: 0 + 1 + 0.5 + 0.5, constant B: 0 + 0.5 + 1 + 1
    assert (first.majority, second.majority, mean.majority) == (0.5, 2.5 / 4, 4.5 / 8)
    assert (first.chance, second.chance, mean.chance) == (0.25, 0.5, 0.375)
    assert (first.unparsed, second.unparsed, mean.unparsed) == (0, 0.25, 0.125)
    assert (first.n, mean.n, mean.tasks) == (4, 8, 2)
    assert first.detail == {"length": 1.0} and second.detail == {"length": 0.75}
    assert (first.low, first.high) == bootstrap([1, 1, 1, 0], [0, 0, 1, 1])


def test_interval_of_a_family():
    """A mean of k independent tasks is known sqrt(k) times better than each."""
    tasks = [scored(name, "A" * 100, said="AB" * 50) for name in "pqrs"]
    # one image each: pairs of one right and one wrong would have no spread
    singles = [Scored(s.item, s.score, s.item.id) for task in tasks for s in task]
    *rows, mean = Letters().summary(singles)
    assert mean.high - mean.low == pytest.approx((rows[0].high - rows[0].low) / 2, rel=0.1)


def test_mean_of_families_is_unweighted():
    one = [*scored("one", "AA", said="AA"), *scored("two", "AA", said="BB")]
    *_, mean = Letters().summary([*one, *scored("three", "AAAA", said="AAAB", family="g")])
    assert (mean.name, mean.score, mean.n, mean.tasks) == ("letters", (0.5 + 0.75) / 2, 8, 2)


def test_chance_needs_all_items():
    rows = Letters().summary([*scored("one", "AB", said="AB", chance=0.5), *scored("one", "AB", said="AB")])
    assert rows[0].chance is None


def test_levels_have_rows_of_their_own():
    items = [*scored("one", "AA", said="AA", level=1), *scored("one", "AA", said="BB", level=3)]
    rows = Letters().summary(items, by_level=True)
    assert [(row.levels, row.score, row.n) for row in rows] == [((1, 3), 0.5, 4), ((1,), 1.0, 2), ((3,), 0.0, 2)]
    assert len(Letters().summary(items)) == 1


def test_scores_all_alike_still_have_an_interval():
    (row,) = Letters().summary(scored("one", "AAAAAAAA", said="BBBBBBBB"))
    assert (row.low, row.high) == wilson(0, 8)
    (row,) = Letters().summary(scored("one", "AAAAAAAA", said="AAAAAAAA"))
    assert (row.low, row.high) == wilson(8, 8)


def test_options_are_kept():
    assert Letters().spec()["init_args"] == {}
    assert Letters().summary([]) == []


def test_majority_looks_at_frequent_answers_only():
    rare = Letters()
    rare.candidates = 1
    items = [s.item for s in scored("one", "AABC", said="AABC")]
    assert rare.majority(items) == pytest.approx(0.5)
