"""The diagrams benchmark: an oracle gets everything, items are balanced, fixed, and found again."""

from dataclasses import asdict

import numpy as np
import pytest

from gnomon.data.sources.diagrams.source import TASKS
from gnomon.eval.benchmark import Item, Scored
from gnomon.eval.benchmarks.diagrams import Diagrams


@pytest.fixture(scope="module")
def asked():
    benchmark = Diagrams()
    return benchmark, [(sample, benchmark.item(sample)) for sample in benchmark.examples(6)]


def summary(benchmark, items, say):
    scored = [Scored(item, benchmark.score(say(item), item), item.id) for item in items]
    return {row.name: row for row in benchmark.summary(scored, resamples=100)}


def test_an_oracle_gets_everything(asked):
    benchmark, pairs = asked
    rows = summary(benchmark, [item for _, item in pairs], lambda item: item.target)
    assert all(row.score == 1 and row.unparsed == 0 for row in rows.values())
    assert rows["standin/geoperception"].tasks == 7
    assert all(name.startswith("standin/") for name in rows)


def test_an_oracle_of_the_official_prompt_gets_everything_from_both_scorers():
    benchmark = Diagrams(prompt="official")
    for sample in benchmark.examples(3):
        item = benchmark.item(sample)
        score = benchmark.score(item.target, item)
        assert score.value == 1
        # one of the known defects: two names of one line may count as two
        if item.meta["predicate"] not in ("Parallel", "Perpendicular", "LineComparison"):
            assert score.detail.get("official", 1) == 1


def test_silence_gets_nothing(asked):
    benchmark, pairs = asked
    rows = summary(benchmark, [item for _, item in pairs], lambda item: "")
    assert all(row.score == 0 and row.unparsed == 1 for row in rows.values())


def test_items_are_balanced_and_known_by_name(asked):
    benchmark, pairs = asked
    assert len(pairs) == benchmark.count(6) == 6 * len(TASKS) == len({item.id for _, item in pairs})
    for task in TASKS:
        assert [item.level for _, item in pairs if item.id.startswith(f"{task}/")] == [1, 2, 3, 1, 2, 3]
    sample, item = pairs[17]
    again = benchmark.sample(item)
    assert again.id == sample.id and np.array_equal(again.images[0], sample.images[0])


def test_an_item_depends_on_nothing_else_that_is_asked(asked):
    _, pairs = asked
    some = Diagrams(tasks=["parallel", "angle"], levels=[3, 2])
    found = {sample.id: sample for sample in some.examples(4)}
    shared = [(sample, found[sample.id]) for sample, _ in pairs if sample.id in found]
    assert len(shared) == 8
    assert all(a.turns == b.turns and np.array_equal(a.images[0], b.images[0]) for a, b in shared)


def test_the_question_alone_is_asked(asked):
    benchmark, pairs = asked
    for sample, item in pairs:
        bare = benchmark.prompt(sample)
        assert [turn.role for turn in bare.turns] == ["user"] and "<image>" not in item.question
        # what a record keeps is enough to score again
        assert benchmark.score(item.target, Item(**asdict(item))).value == 1


def test_settings_tell_questions_apart():
    settings = Diagrams().settings()
    assert settings["tasks"] == list(TASKS) and settings["levels"] == [1, 2, 3]
    assert settings == Diagrams(tasks=list(reversed(TASKS))).settings() | {"init_args": {}}
    assert settings != Diagrams(levels=[1]).settings()


def test_chance(asked):
    _, pairs = asked
    chances = {item.task.rsplit("/")[-1]: item.chance for _, item in pairs}
    assert chances["angle"] == chances["longer"] == 0.5 and chances["shape"] == chances["count"] == 0.25
    assert chances["annotation"] is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tasks": ["angel"]}, "task 'angel' is unknown; did you mean 'angle'"),
        ({"levels": [4]}, "level 4"),
        ({"seed": -1}, "seed is -1"),
    ],
)
def test_mistakes(options, message):
    with pytest.raises(ValueError, match=message):
        Diagrams(**options)
