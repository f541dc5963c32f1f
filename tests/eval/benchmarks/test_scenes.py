"""The scenes benchmark: an oracle gets everything, nobody else does, items are balanced, fixed, and found again."""

import json
import shutil
from collections import Counter
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from gnomon.data import cameras
from gnomon.data.sources.diagrams import dice
from gnomon.data.sources.scenes import source
from gnomon.data.sources.scenes.source import TASKS
from gnomon.eval.benchmark import Benchmark, Item, Scored
from gnomon.eval.benchmarks.scenes import Scenes
from gnomon.vlm.part import build


@pytest.fixture(scope="module")
def asked():
    benchmark = Scenes(size=(48, 64))
    return benchmark, [(sample, benchmark.item(sample)) for sample in benchmark.examples(12)]


def summary(benchmark, items, say):
    scored = [Scored(item, benchmark.score(say(item), item), item.id) for item in items]
    return {row.name: row for row in benchmark.summary(scored, resamples=100)}


def test_an_oracle_gets_everything(asked):
    benchmark, pairs = asked
    rows = summary(benchmark, [item for _, item in pairs], lambda item: item.target)
    assert all(row.score == 1 and row.unparsed == 0 for row in rows.values())
    assert rows["scenes"].tasks == 10 and rows["scenes/motion"].tasks == rows["scenes/order"].tasks == 2
    assert {f"scenes/{task}" for task in TASKS} <= set(rows)


def test_silence_gets_nothing_and_a_constant_gets_chance(asked):
    benchmark, pairs = asked
    items = [item for _, item in pairs]
    rows = summary(benchmark, items, lambda item: "")
    assert all(row.score == 0 and row.unparsed == 1 for row in rows.values())
    for row in summary(benchmark, items, lambda item: "A").values():
        if row.chance is not None:
            # twelve items are whole blocks of two, three, four and six answers
            assert row.score == row.majority == pytest.approx(row.chance)


def test_words_have_to_be_said_without_a_list():
    benchmark = Scenes(prompt="words", size=(48, 48))
    for sample in benchmark.examples(2):
        item = benchmark.item(sample)
        assert "Choices" not in item.question and benchmark.score(item.target, item).value == 1
        assert item.meta["choices"] is None and benchmark.score("A", item).value == 0


def test_items_are_balanced_and_known_by_name(asked):
    benchmark, pairs = asked
    assert len(pairs) == benchmark.count(12) == 12 * len(TASKS) == len({item.id for _, item in pairs})
    for task, kind in TASKS.items():
        classes = Counter(sample.meta["class"] for sample, _ in pairs if sample.meta["task"] == task)
        assert max(classes.values()) - min(classes.values()) <= (12 % kind.answers > 0)
    sample, item = pairs[17]
    again = benchmark.sample(item)
    assert again.id == sample.id and np.array_equal(again.images[0], sample.images[0])


def test_an_item_depends_on_nothing_else_that_is_asked(asked):
    _, pairs = asked
    found = {sample.id: sample for sample in Scenes(tasks=["mirror", "nearer"], size=(48, 64)).examples(2)}
    shared = [(sample, found[sample.id]) for sample, _ in pairs if sample.id in found]
    assert len(shared) == len(found) == 4
    assert all(a.turns == b.turns and np.array_equal(a.images[0], b.images[0]) for a, b in shared)


def test_the_question_alone_is_asked(asked):
    benchmark, pairs = asked
    for sample, item in pairs[:24]:
        assert [turn.role for turn in benchmark.prompt(sample).turns] == ["user"] and "<image>" not in item.question
        # what a record keeps is enough to score again
        assert benchmark.score(item.target, Item(**asdict(item))).value == 1


def test_one_view_has_the_tasks_that_make_sense():
    benchmark = Scenes(views=1)
    assert set(TASKS) - set(benchmark.tasks) == {"motion_direction", "motion_angle", "count"}
    assert len(next(benchmark.examples(1)).geometry.views) == 1


def test_scenes_of_another_kind():
    """What the cameras and the depth of the items say, not what was asked for."""
    given = {"objects": (6, 8), "distances": (9, 14), "focal": (1.6, 2.0), "baseline": (1.5, 3.0)}
    benchmark = Scenes(tasks=["nearer", "larger"], size=(48, 64), **given)
    assert "objects 6 to 8, distances 9 to 14, focal 1.6 to 2, baseline 1.5 to 3" in benchmark.protocol
    for sample in benchmark.examples(4):
        geometry = sample.geometry
        assert 1.6 * 48 <= geometry.intrinsics[0, 0, 0] <= 2.0 * 48
        assert 6 <= len(np.unique(geometry.instances[0])) - 1 <= 8
        assert geometry.depth[0][geometry.instances[0] > 0].min() > 6
        # of two cameras [R|t], the second's centre in the first's frame
        (r, t), (q, u) = ((camera[:, :3], camera[:, 3]) for camera in geometry.extrinsics[:2])
        assert 1.5 - 1e-6 <= np.linalg.norm(r.T @ t - q.T @ u) <= 3 + 1e-6
    usual = next(Scenes(tasks=["nearer"], size=(48, 64)).examples(1)).geometry
    assert 0.8 * 48 <= usual.intrinsics[0, 0, 0] <= 1.4 * 48


def test_its_options_survive_a_file():
    benchmark = Scenes(views=(3, 4), shown="all", distances=(9.0, 14.0), tasks=["nearer"])
    again = build(json.loads(json.dumps(benchmark.spec())), Benchmark)
    assert again.protocol == benchmark.protocol and again.settings() == benchmark.settings()
    sample, other = next(benchmark.examples(1)), next(again.examples(1))
    assert sample.turns == other.turns and len(sample.images) == len(other.geometry.views) >= 3


def test_settings_tell_questions_apart():
    settings = Scenes().settings()
    assert settings["tasks"] == list(TASKS)
    assert settings == Scenes(tasks=list(reversed(TASKS))).settings() | {"init_args": {}}
    assert settings != Scenes(views=2).settings()


@pytest.mark.parametrize("module", [cameras, dice, source])
def test_settings_tell_generators_apart(module, tmp_path, monkeypatch):
    before = Scenes().settings()
    folder = Path(shutil.copytree(Path(module.__file__).parent, tmp_path / "copy"))
    monkeypatch.setattr(module, "__file__", str(folder / Path(module.__file__).name))
    assert Scenes().settings() == before
    with open(module.__file__, "a") as file:
        file.write("# another one\n")
    assert Scenes().settings()["generator_sha256"] != before["generator_sha256"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tasks": ["distanse"]}, "task 'distanse' is unknown; did you mean 'distance'"),
        ({"views": 0}, "views is"),
        ({"seed": -1}, "seed is -1"),
        ({"objects": (1, 3)}, r"objects is \(1, 3\), but must be"),
        ({"distances": (8.0, 2.0)}, r"distances is \(8.0, 2.0\), but must be"),
        ({"focal": (float("nan"), 1.0)}, "focal is"),
    ],
)
def test_mistakes(options, message):
    with pytest.raises(ValueError, match=message):
        Scenes(**options)
