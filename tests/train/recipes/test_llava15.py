"""Two stages: only what a stage names moves, the second begins with what the first left, finished ones are skipped."""

from __future__ import annotations

import json

import pytest
import torch
import yaml
from safetensors.torch import load_file

from gnomon.train.recipes.llava15 import LLaVA15

pytestmark = pytest.mark.timeout(120)


@pytest.fixture
def options(tmp_path) -> tuple[str, ...]:
    args = {"align_share": 0.34, "align_lr": 1e-2, "sft_lr": 1e-3, "align_batch_size": 2}
    recipe = {"class_path": "gnomon.train.recipes.llava15.LLaVA15", "init_args": args}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump({"recipe": recipe}))
    return ("--config", str(tmp_path / "recipe.yaml"))


def part(state: dict[str, torch.Tensor], name: str) -> dict[str, torch.Tensor]:
    return {key: tensor for key, tensor in state.items() if key.startswith(f"{name}.")}


def moved(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor], name: str) -> set[bool]:
    return {not torch.equal(tensor, after[key]) for key, tensor in part(before, name).items()}


def test_only_the_declared_parts_of_each_stage_move(fit, weights, options, tmp_path):
    run = tmp_path / "run"
    fit(tmp_path / "start", "--recipe.lr", "0", "--trainer.max_steps", "1")
    said = fit(run, *options)
    start, align, end = (
        weights(tmp_path / "start"),
        load_file(run / "stages/align/model/model.safetensors"),
        weights(run),
    )
    assert [moved(start, align, name) for name in ("encoder", "connector", "lm")] == [{False}, {True}, {False}]
    assert [moved(align, end, name) for name in ("encoder", "connector", "lm")] == [{False}, {True}, {True}]
    assert "stage align: 2 steps of 2 samples" in said and "stage sft: 4 steps of 4 samples" in said
    # the template of the captions is the stage's own, not the model's
    configs = [json.loads((run / path / "config.json").read_text()) for path in ("stages/align/model", "model")]
    assert [config["model"]["template"] for config in configs] == ["demo", "demo"]


def test_a_fusion_is_trained_with_the_connector(fit, weights, options, by_turns, tmp_path):
    geometry = {"class_path": "gnomon.vlm.geometry.known.Known", "init_args": {"patch": 8, "octaves": 2}}
    fusion = {"class_path": "gnomon.vlm.fusion.gated.Gated", "init_args": {"merge": 2}}
    given = {"model": {"geometry": geometry, "fusion": fusion}, "data": by_turns("SSSSSSSS")}
    (tmp_path / "scenes.yaml").write_text(yaml.safe_dump(given))
    options = (*options, "--config", str(tmp_path / "scenes.yaml"))
    fit(tmp_path / "start", *options[2:], "--recipe.lr", "0", "--trainer.max_steps", "1")
    fit(tmp_path / "run", *options)
    start, end = weights(tmp_path / "start"), weights(tmp_path / "run")
    align = load_file(tmp_path / "run/stages/align/model/model.safetensors")
    assert moved(start, align, "fusion") == moved(align, end, "fusion") == {True}
    assert moved(start, align, "lm") == moved(start, end, "encoder") == {False}


@pytest.mark.parametrize("nth", [2, 4])
def test_killed_in_either_stage_and_resumed(fit, killed, weights, options, tmp_path, nth):
    fit(tmp_path / "straight", *options)
    run = tmp_path / "run"
    killed(run, "training_step", nth, *options)
    said = fit(run, *options, "--resume")
    assert ("stage align" in said) == (nth == 2)
    first, second = weights(tmp_path / "straight"), weights(run)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_defaults_are_the_papers():
    align, sft = LLaVA15().stages()
    assert (align.beside, sft.beside) == ({"fusion.*": 1e-3}, {"fusion.*": 2e-5})
    assert align.rates == {"connector.*": 1e-3} and align.template == "plain"
    assert sft.rates == {"connector.*": 2e-5, "lm.*": 2e-5} and sft.template is None
    assert (sft.optim.warmup, sft.optim.schedule, sft.optim.weight_decay) == (0.03, "cosine", 0.0)
