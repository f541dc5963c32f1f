"""A run that was killed and resumed is the run that was not, bit for bit."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest
import torch

from gnomon.train.callbacks.handoff import HandOff

pytestmark = pytest.mark.timeout(180)


def order(run: Path) -> list[tuple[int, float, float]]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [(row["step"], row["loss"], row["tokens"]) for row in rows]


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, ...], Path]:
    return {}


# before the first checkpoint, right after one, between two, and within a window of two micro-batches
@pytest.mark.parametrize(
    ("nth", "options"),
    [
        (2, ()),
        (3, ()),
        (6, ("--data.workers", "2")),
        (8, ("--trainer.accumulate_grad_batches", "2")),
        (10, ("--trainer.accumulate_grad_batches", "2", "--data.pack", "128", "--data.max_length", "128")),
    ],
)
def test_killed_and_resumed_equals_straight(fit, killed, weights, straight, tmp_path, tmp_path_factory, nth, options):
    if options not in straight:
        straight[options] = tmp_path_factory.mktemp("straight") / "run"
        fit(straight[options], *options)
    run = tmp_path / "run"
    killed(run, "training_step", nth, *options)
    assert not (run / "model").exists()
    fit(run, "--resume", *options)
    assert same(weights(run), weights(straight[options]))
    assert order(run) == order(straight[options])


def test_killed_while_saving_keeps_the_checkpoint_before(fit, killed, weights, tmp_path):
    fit(tmp_path / "straight")
    run = tmp_path / "run"
    # the second save, of step 4, is cut off before it is complete
    killed(run, "on_save_checkpoint", 2)
    saved = sorted(path.name for path in (run / "checkpoints" / "sft").iterdir())
    assert "step-00000002" in saved and "step-00000004" not in saved
    assert "step-00000002" in fit(run, "--resume")
    assert same(weights(run), weights(tmp_path / "straight"))


def test_a_finished_run_is_not_trained_again(fit, weights, tmp_path):
    fit(tmp_path)
    before = weights(tmp_path)
    assert "stage" not in fit(tmp_path, "--resume")
    assert same(before, weights(tmp_path))


def test_killed_before_the_model_is_handed_off(fit, forked, on_call, weights, tmp_path):
    fit(tmp_path / "straight")
    run = tmp_path / "run"

    def die() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    code, _ = forked(run, change=lambda: on_call(HandOff, "on_fit_end", 1, die))
    assert code == -signal.SIGKILL
    assert (run / "checkpoints/sft/step-00000006").exists() and not (run / "model").exists()
    fit(run, "--resume")
    assert same(weights(run), weights(tmp_path / "straight"))
