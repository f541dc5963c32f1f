"""What a run makes of a model that it starts from: parts that the configuration adds to a checkpoint, and refusals."""

from __future__ import annotations

import json

import pytest
import torch
import yaml

from gnomon.vlm.save import from_config, load, save

pytestmark = pytest.mark.timeout(180)

COMPUTE = {"class_path": "gnomon.vlm.compute.naavit.NAAViT"}
GEOMETRY = {"class_path": "gnomon.vlm.geometry.tinygeo.TinyGeo", "init_args": {"heads": []}}
FUSION = {"class_path": "gnomon.vlm.fusion.add.Add", "init_args": {"align": "pool", "zero": True}}
MIXER = {"class_path": "gnomon.vlm.mixers.lightning.Lightning", "init_args": {"layers": [1]}}


@pytest.fixture
def checkpoint(demo, tmp_path):
    torch.manual_seed(0)
    return save(from_config(demo / "config.yaml"), tmp_path / "start")


def overlay(tmp_path, model: dict, **rest: dict) -> str:
    path = tmp_path / "overlay.yaml"
    path.write_text(yaml.safe_dump({"model": model, **rest}))
    return str(path)


def test_a_checkpoint_gets_the_geometry_and_the_mixers_that_the_configuration_names(fit, checkpoint, tmp_path):
    parts = {"geometry": GEOMETRY, "fusion": FUSION, "mixers": [MIXER]}
    given = overlay(tmp_path, {"checkpoint": str(checkpoint), **parts})
    fit(tmp_path / "run", "--config", given, "--trainer.max_steps", "2", "--recipe.lr", "1e-9")
    model, start = load(tmp_path / "run" / "model"), load(checkpoint)
    assert type(model.geometry).__name__ == "TinyGeo" and type(model.fusion).__name__ == "Add"
    assert [type(mixer).__name__ for mixer in model.mixers] == ["Lightning"]
    kept = start.state_dict()
    same = [name for name in model.state_dict() if name in kept]
    assert any(name.startswith("encoder") for name in same)
    assert all(torch.allclose(model.state_dict()[name], kept[name], atol=1e-6) for name in same)


def test_geometry_without_a_fusion_is_refused(fit, checkpoint, tmp_path):
    given = overlay(tmp_path, {"checkpoint": str(checkpoint), "geometry": GEOMETRY})
    said = fit(tmp_path / "run", "--config", given, code=2)
    assert "the model has a geometry but no fusion; give both, or none" in said and said.count("\n") == 1


def test_a_new_fusion_that_no_stage_trains_is_refused(fit, checkpoint, tmp_path):
    rates = {"class_path": "gnomon.train.recipes.sft.SFT", "init_args": {"rates": {"connector.*": 1e-3}}}
    random = {**FUSION, "init_args": {"align": "pool"}}
    parts = {"checkpoint": str(checkpoint), "geometry": GEOMETRY}
    given = overlay(tmp_path, {**parts, "fusion": random}, recipe=rates)
    said = fit(tmp_path / "run", "--config", given, code=2)
    assert "the fusion Add is new and no stage trains any of its 5 parameters, such as fusion.merger.norm" in said
    assert "add fusion.* to the recipe's rates" in said and said.count("\n") == 1

    # what begins as the plain model may stay that
    closed = {"class_path": "gnomon.vlm.fusion.residual_gate.ResidualGate", "init_args": {"fusion": random}}
    short = ("--trainer.max_steps", "1")
    for name, fusion in (("zero", FUSION), ("closed", closed)):
        given = overlay(tmp_path, {**parts, "fusion": fusion}, recipe=rates)
        assert "warning: the recipe's rates name none" in fit(tmp_path / name, "--config", given, *short)
    # and one that comes with the checkpoint has been trained
    given = overlay(tmp_path, {"checkpoint": str(tmp_path / "closed" / "model")}, recipe=rates)
    fit(tmp_path / "more", "--config", given, *short)


@pytest.mark.parametrize("strategy", ["zero3", "fsdp2"])
def test_layers_that_are_taken_apart_are_not_sharded(fit, tmp_path, strategy):
    given = overlay(tmp_path, {"compute": COMPUTE})
    said = fit(tmp_path / "run", "--config", given, "--trainer.strategy", strategy, code=2)
    assert f"trainer.strategy {strategy} shards the weights of layers that NAAViT takes apart" in said


def test_the_last_step_is_logged_whatever_the_interval(fit, metric, tmp_path):
    said = fit(tmp_path / "run", "--trainer.log_every_n_steps", "4", "--trainer.max_steps", "6")
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == [1, 4, 6]
    assert f"step 6/6  loss {metric(tmp_path / 'run')[-1]:.4f}" in said


@pytest.mark.parametrize("every", ["0", "-1", "null"])
def test_an_impossible_interval_leaves_the_old_run_alone(fit, tmp_path, every):
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.resolved.yaml").write_text("an older run")
    said = fit(run, "--trainer.log_every_n_steps", every, "--overwrite", code=2)
    assert "set trainer.log_every_n_steps to 1 or more" in said and said.count("\n") == 1
    assert [path.name for path in run.iterdir()] == ["config.resolved.yaml"]


@pytest.mark.parametrize(("option", "count"), [("max_steps", "0"), ("max_steps", "-3"), ("max_epochs", "0")])
def test_no_steps_and_no_epochs_are_refused(fit, tmp_path, option, count):
    said = fit(tmp_path / "run", "--trainer.max_steps", "-1", f"--trainer.{option}", count, code=2)
    assert f"trainer.{option} {count} trains nothing; set trainer.{option} to 1 or more" in said
    assert said.count("\n") == 1 and not (tmp_path / "run").exists()
