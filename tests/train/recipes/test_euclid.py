"""The rule against its formula, and a run whose levels, samples and weights survive a kill."""

from __future__ import annotations

import json
import math

import pytest
import torch
import yaml

from gnomon.data.sources.diagrams.source import Diagrams
from gnomon.train.callbacks.curriculum import Competence, remade

pytestmark = pytest.mark.timeout(120)


def test_weights_fall_with_the_distance_from_the_present_level():
    competence = Competence(("angle", "shape"), (1, 2, 3))
    mixture = competence.mixture({"angle": 1, "shape": 0})
    assert mixture["angle"][1] / mixture["angle"][2] == pytest.approx(math.exp(-1.5))
    assert mixture["shape"][3] / mixture["shape"][1] == pytest.approx(math.exp(-3.0))
    assert sum(mixture["angle"].values()) == pytest.approx(sum(mixture["shape"].values())) == pytest.approx(1)


def test_a_finished_task_is_uniform_and_has_four_tenths():
    mixture = Competence(("angle", "shape"), (1, 2, 3)).mixture({"angle": 3, "shape": 2})
    assert mixture["angle"] == pytest.approx(dict.fromkeys((1, 2, 3), 0.4 / 3))
    assert sum(mixture["shape"].values()) == pytest.approx(1)


def test_no_decay_is_a_static_mixture():
    assert Competence(("angle",), (1, 2), decay=0.0).mixture({"angle": 0})["angle"] == {1: 0.5, 2: 0.5}


def test_a_trace_of_accuracies_has_one_path_and_never_goes_back():
    competence = Competence(("angle", "shape"), (1, 2), threshold=0.9)
    state, path = competence.start(), []
    for angle, shape in [(0.95, 0.9), (0.5, 0.91), (0.99, 0.99), (0.99, 0.99)]:
        unfinished = {task: value for task, value in (("angle", angle), ("shape", shape)) if state[task] < 2}
        state = competence.advance(state, unfinished)
        path.append(tuple(state.values()))
    assert path == [(1, 0), (1, 1), (2, 2), (2, 2)]


def test_a_source_is_made_again_with_other_arguments():
    source = Diagrams(count=9, seed=3, tasks=["angle"], size=(112, 128), style="clean")
    other = remade(source, mixture={"shape": {2: 1.0}}, count=5)
    assert (len(other), other.seed, other.size, other.style) == (5, 3, (112, 128), "clean")
    assert {other[i].meta["task"] for i in range(5)} == {"shape"} and {other[i].meta["level"] for i in range(5)} == {2}
    with pytest.raises(ValueError, match="mixture"):
        remade([], mixture={})


@pytest.fixture
def options(tmp_path) -> tuple[str, ...]:
    """Two tasks of two levels, scored every second step."""
    diagrams = "gnomon.data.sources.diagrams.source.Diagrams"
    recipe = {"tasks": ["angle", "shape"], "levels": [1, 2], "every": 2, "samples": 4, "threshold": 0.0}
    recipe["rates"] = {"*": 1e-3}
    config = {
        "recipe": {"class_path": "gnomon.train.recipes.euclid.Euclid", "init_args": recipe},
        "data": {
            "train": {
                "class_path": diagrams,
                "init_args": {"count": 1000, "size": [112, 112], "tasks": ["angle", "shape"]},
            }
        },
        "checkpoint": {"every": 1},
    }
    (tmp_path / "euclid.yaml").write_text(yaml.safe_dump(config))
    return ("--config", str(tmp_path / "euclid.yaml"))


@pytest.fixture
def scripted(monkeypatch) -> None:
    """Every task is mastered at every second scoring."""
    from gnomon.train.callbacks import curriculum
    from gnomon.train.evaluate import Score, evaluate

    def score(trainer, module, batches):
        evaluate(trainer, module, batches)
        return Score(0.0, float(trainer.global_step % 4 == 0), 4)

    monkeypatch.setattr(curriculum, "evaluate", score)


# during the step after a scoring, and between two
@pytest.mark.parametrize(("nth", "workers"), [(3, 0), (5, 1), (6, 0)])
def test_killed_and_resumed_equals_straight(fit, killed, weights, metric, scripted, options, tmp_path, nth, workers):
    options = (*options, "--data.workers", str(workers))
    fit(tmp_path / "straight", *options)
    assert metric(tmp_path / "straight", "level/angle") == [0, 1, 1]
    run = tmp_path / "run"
    killed(run, "training_step", nth, *options)
    fit(run, *options, "--resume")
    assert metric(run) == metric(tmp_path / "straight")
    assert metric(run, "level/angle") == [0, 1, 1]
    first, second = weights(tmp_path / "straight"), weights(run)
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("strategy", ["ddp", "zero3", "fsdp2"])
def test_scoring_is_the_same_on_two_ranks(fit, ranks, options, tmp_path, strategy):
    options = (*options, "--model.lm.init_args.config.attention_dropout", "0.0")
    fit(tmp_path / "one", *options)
    ranks(tmp_path / "two", *options, "--data.batch_size", "2", "--trainer.strategy", strategy)
    logs = [[json.loads(line) for line in (tmp_path / name / "metrics.jsonl").open()] for name in ("one", "two")]
    scores = [[row for row in log if "accuracy/angle" in row] for log in logs]
    assert scores[0] == scores[1] and len(scores[0]) == 3
    losses = [[row["loss"] for row in log if "loss" in row] for log in logs]
    assert losses[1] == pytest.approx(losses[0], abs=1e-5)
