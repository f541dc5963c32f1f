"""Two processes under each strategy train as one process does, leave one loadable model, and resume exactly."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from gnomon.train.callbacks.checkpoint import discard
from gnomon.vlm.save import load

pytestmark = pytest.mark.timeout(180)

STRATEGIES = ("ddp", "zero1", "zero2", "zero3", "fsdp2")


@pytest.fixture
def options(rows, demo) -> tuple[str, ...]:
    images = [True, True, False, False, True, False, False, False, False, False, False, True] * 4
    path = rows(demo, "mixed.jsonl", images)
    return ("--data.train.path", str(path), "--data.shuffle", "false", "--trainer.max_steps", "4", *NO_DROPOUT)


NO_DROPOUT = ("--model.lm.init_args.config.attention_dropout", "0.0")


@pytest.fixture
def reference(fit, options, tmp_path) -> Path:
    """One process, the whole global batch at once."""
    fit(tmp_path / "one", *options, "--data.batch_size", "8")
    return tmp_path / "one"


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_trajectory_model_and_resume(ranks, metric, weights, reference, options, tmp_path, strategy):
    run = tmp_path / "two"
    split = ("--data.batch_size", "2", "--trainer.accumulate_grad_batches", "2", "--trainer.strategy", strategy)
    ranks(run, *options, *split)
    assert metric(run) == pytest.approx(metric(reference), abs=1e-5)
    # unlike Adam's steps, the norm shows a gradient that was scaled as a whole (DeepSpeed dividing a second time)
    assert metric(run, "grad_norm") == pytest.approx(metric(reference, "grad_norm"), rel=1e-4)
    first = weights(run)
    assert first.keys() == weights(reference).keys()
    assert all(tensor.isfinite().all() for tensor in load(run / "model").state_dict().values())

    # as if killed after the checkpoint of step 2
    shutil.rmtree(run / "model")
    shutil.rmtree(run / "stages")
    discard(run / "checkpoints" / "sft" / "step-00000004")
    said = ranks(run, *options, *split, "--resume")
    assert "resumed from step-00000002" in said
    resumed = weights(run)
    assert all(torch.equal(first[name], resumed[name]) for name in first)
