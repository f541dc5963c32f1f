"""A loss or gradient that is not finite ends the run with the samples' names and leaves the step before it whole."""

from __future__ import annotations

import json

import pytest
import torch

from gnomon.vlm.model import VLM

pytestmark = pytest.mark.timeout(180)

LOSS = VLM.loss


def poisoned_loss(self, batch):
    total, count = LOSS(self, batch)
    return total * float("nan" if self.training and "row-7" in batch.samples else 1), count


def poisoned_gradient(self, batch):
    """The loss is what it was, its derivative is 0 / 0."""
    total, count = LOSS(self, batch)
    if "row-7" in batch.samples:
        total = total + (0 * next(self.connector.parameters())).sum().sqrt()
    return total, count


@pytest.mark.parametrize("poison", [poisoned_loss, poisoned_gradient])
@pytest.mark.parametrize("options", [(), ("--trainer.accumulate_grad_batches", "2")])
def test_stops_and_can_be_resumed_without_the_fault(fit, weights, monkeypatch, tmp_path, poison, options):
    options = (*options, "--data.shuffle", "false", "--data.batch_size", "3")
    fit(tmp_path / "straight", *options)
    run = tmp_path / "run"
    monkeypatch.setattr(VLM, "loss", poison)
    said = fit(run, *options, code=1)
    assert said.splitlines()[-1].startswith("gnomon: loss or gradient is not finite at step") and "row-7" in said
    failure = json.loads((run / "failure.json").read_text())
    # row-7 is in the third micro-batch
    assert failure["step"] == (2 if len(options) == 4 else 1)
    assert any("row-7" in batch["samples"] for batch in failure["batches"])
    monkeypatch.undo()
    fit(run, *options, "--resume")
    first, second = weights(tmp_path / "straight"), weights(run)
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize(
    ("strategy", "poison"), [("ddp", poisoned_loss), ("ddp", poisoned_gradient), ("zero2", poisoned_gradient)]
)
def test_one_rank_stops_all(ranks, weights, monkeypatch, tmp_path, strategy, poison):
    options = ("--data.shuffle", "false", "--data.batch_size", "2", "--trainer.max_steps", "3")
    options += ("--trainer.strategy", strategy)
    run = tmp_path / "run"
    monkeypatch.setattr(VLM, "loss", poison)
    # rows 6 and 7 are rank 1's second batch
    said = ranks(run, *options, code=1)
    assert "row-7" in said and "step-00000001" in said
    monkeypatch.undo()
    ranks(run, *options, "--resume")
    ranks(tmp_path / "straight", *options)
    first, second = weights(tmp_path / "straight"), weights(run)
    assert all(torch.equal(first[name], second[name]) for name in first)
