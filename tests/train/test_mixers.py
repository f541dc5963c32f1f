"""Two processes under each strategy train mixers, and teach them, as one process does, and go on exactly."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
import yaml

from gnomon.train.callbacks.checkpoint import discard

pytestmark = pytest.mark.timeout(240)

MIXERS = "gnomon.vlm.mixers"
TAUGHT = [
    {"class_path": f"{MIXERS}.lolcats.LoLCATs", "init_args": {"layers": [0], "window": 3, "rank": 2}},
    {"class_path": f"{MIXERS}.hedgehog.Hedgehog", "init_args": {"layers": [1, 3], "rank": 2}},
]
RECURRENT = [
    {"class_path": f"{MIXERS}.gated_deltanet.GatedDeltaNet", "init_args": {"layers": [0]}},
    {"class_path": f"{MIXERS}.kda.KDA", "init_args": {"layers": [1], "rank": 4}},
    {"class_path": f"{MIXERS}.hgrn2.HGRN2", "init_args": {"layers": [2]}},
    {"class_path": f"{MIXERS}.lolcats.LoLCATs", "init_args": {"layers": [3], "window": 3}},
]
CONVERT = {"class_path": "gnomon.train.recipes.lolcats.LoLCATs", "init_args": {"transfer_share": 0.5, "lr": 3e-3}}


@pytest.fixture
def options(rows, demo, tmp_path):
    """Four layers; micro-batches of which some have no image; four steps."""
    path = rows(demo, "mixed.jsonl", [True, True, False, False, True, False, False, False] * 4)
    sizes = {"num_hidden_layers": 4, "attention_dropout": 0.0, "initializer_range": 0.2}
    model = [word for name, value in sizes.items() for word in (f"--model.lm.init_args.config.{name}", str(value))]

    def make(mixers: list[dict], **more: dict) -> tuple[str, ...]:
        (tmp_path / "mixers.yaml").write_text(yaml.safe_dump({"model": {"mixers": mixers}, **more}))
        data = ("--data.train.path", str(path), "--data.shuffle", "false", "--trainer.max_steps", "4")
        return ("--config", str(tmp_path / "mixers.yaml"), *model, *data, "--checkpoint.every", "1")

    return make


def split(strategy: str) -> tuple[str, ...]:
    return ("--data.batch_size", "2", "--trainer.accumulate_grad_batches", "2", "--trainer.strategy", strategy)


def near(metric, two: Path, one: Path) -> None:
    assert metric(two) == pytest.approx(metric(one), abs=1e-5)
    assert metric(two, "grad_norm") == pytest.approx(metric(one, "grad_norm"), rel=1e-4)


@pytest.mark.parametrize("strategy", ["ddp", "zero2", "zero3", "fsdp2"])
def test_lessons_and_what_follows_them(fit, ranks, metric, weights, options, tmp_path, strategy):
    one, two, given = tmp_path / "one", tmp_path / "two", options(TAUGHT, recipe=CONVERT)
    fit(one, *given, "--data.batch_size", "8")
    ranks(two, *given, *split(strategy))
    near(metric, two, one)
    for layer in (0, 1, 3):
        assert metric(two, f"error/{layer}") == pytest.approx(metric(one, f"error/{layer}"), rel=1e-4)
    first = weights(two)

    # as if killed behind the first step of attention transfer
    shutil.rmtree(two / "model")
    shutil.rmtree(two / "stages")
    shutil.rmtree(two / "checkpoints" / "tune")
    discard(two / "checkpoints" / "transfer" / "step-00000002")
    said = ranks(two, *given, *split(strategy), "--resume")
    assert "resumed from step-00000001" in said
    resumed = weights(two)
    assert all(torch.equal(first[name], resumed[name]) for name in first)


@pytest.mark.parametrize("strategy", ["zero2", "zero3", "fsdp2"])
def test_mixers_of_all_kinds_and_recomputed_layers(fit, ranks, metric, options, tmp_path, strategy):
    given = (*options(RECURRENT), "--model.lm.init_args.checkpointing", "true")
    fit(tmp_path / "one", *given, "--data.batch_size", "8")
    ranks(tmp_path / "two", *given, *split(strategy))
    near(metric, tmp_path / "two", tmp_path / "one")
