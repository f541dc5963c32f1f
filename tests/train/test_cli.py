"""What a user sees: one line for a mistake, a run directory that explains itself, and the real command line."""

from __future__ import annotations

import json
import math

import pytest
import torch
import yaml

from gnomon.cli.main import main
from gnomon.train.strategies import Zero
from gnomon.vlm.save import load

pytestmark = pytest.mark.timeout(180)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (("--trainer.max_step", "3"), "did you mean 'trainer.max_steps'"),
        (("--trainer.precision", "bf17"), "bf16-mixed"),
        (("--trainer.precision", "16-mixed"), "use bf16-mixed"),
        (("--trainer.strategy", "zero22"), "did you mean 'zero2'"),
        (("--trainer.accelerator", "gpx"), "accelerator='gpx'"),
        (("--loggers", "[tensorbord]"), "use tensorboard, wandb"),
        (("--recipe.rates", "{'conector.*': 1.0}"), "connector.*"),
        (("--data.train.pat", "x"), "did you mean 'path'"),
        (("--data.train.path", "nowhere.jsonl"), "nowhere.jsonl: no such file"),
        (("--data.batch_size", "many"), "data.batch_size: expected int"),
        (("--config", "nowhere.yaml"), "nowhere.yaml"),
        (("--resume",), "no run to resume"),
        (("--budget.minutes", "0"), "budget of 0 minutes"),
        (("--model.checkpoint", "nowhere"), "no model directory nowhere"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(fit, tmp_path, options, expected):
    said = fit(tmp_path / "run", *options, code=2)
    assert said.startswith("gnomon: ") and said.count("\n") == 1 and expected in said
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("- 1\n- 2\n", "Unexpected config"),
        ("data: [\n", "Problems parsing config"),
        ("modle: {encoder: x}\n", "did you mean 'model"),
        ("trainer: {max_step: 3}\n", "did you mean 'max_steps'"),
        ("data: {train: {init_args: {pat: x}}}\n", "did you mean 'path'"),
    ],
)
def test_a_wrong_file_is_one_line_and_exit_code_2(fit, tmp_path, text, expected):
    (tmp_path / "wrong.yaml").write_text(text)
    said = fit(tmp_path / "run", "--config", str(tmp_path / "wrong.yaml"), code=2)
    assert said.startswith("gnomon: ") and said.count("\n") == 1 and expected in said


def test_configs_merge_left_to_right_and_are_printed(demo, tmp_path, capsys):
    (tmp_path / "more.yaml").write_text("data: {batch_size: 7}\ntrainer: {max_steps: 9}\n")
    files = ["--config", str(demo / "config.yaml"), "--config", str(tmp_path / "more.yaml")]
    with pytest.raises(SystemExit) as ended:
        main(["fit", *files, "--out", str(tmp_path / "run"), "--data.batch_size", "8", "--print_config"])
    assert ended.value.code == 0
    printed = yaml.safe_load(capsys.readouterr().out)
    assert printed["data"]["batch_size"] == 8 and printed["trainer"]["max_steps"] == 9
    assert printed["data"]["train"]["init_args"]["path"] == str(demo / "rows.jsonl")


def test_run_directory(fit, tmp_path):
    run = tmp_path / "run"
    said = fit(run, "--loggers", "[tensorboard, wandb_offline]")
    assert "connector" in said and "trainable" in said and "tokens/s" in said and f"model: {run}/model" in said
    assert yaml.safe_load((run / "config.resolved.yaml").read_text())["trainer"]["max_steps"] == 6
    assert json.loads((run / "environment.json").read_text())["packages"]["torch"] == torch.__version__.split("+")[0]
    report = json.loads((run / "stages" / "sft" / "done.json").read_text())
    assert report["steps"] == 6 and report["tokens"] > 0
    assert list(run.rglob("events.out.tfevents*")) and list(run.rglob("*.wandb"))
    assert (run / "metrics.csv").read_text().startswith("stage,step,loss,lr,grad_norm")


def test_a_run_starts_from_a_model_directory(fit, weights, tmp_path):
    fit(tmp_path / "first")
    # a learning rate of zero leaves the model as it came
    options = ("--model.checkpoint", str(tmp_path / "first" / "model"), "--recipe.lr", "0", "--trainer.max_steps", "1")
    fit(tmp_path / "second", *options)
    first, second = weights(tmp_path / "first"), weights(tmp_path / "second")
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_it_learns_and_is_validated(fit, metric, demo, tmp_path):
    run = tmp_path / "run"
    source = yaml.safe_load((demo / "config.yaml").read_text())["data"]["train"]
    (tmp_path / "val.yaml").write_text(yaml.safe_dump({"data": {"val": source}, "trainer": {"val_check_interval": 30}}))
    fit(run, "--config", str(tmp_path / "val.yaml"), "--trainer.max_steps", "60", "--recipe.lr", "1e-2")
    losses = metric(run)
    assert losses[0] == pytest.approx(math.log(300), abs=0.3)
    assert losses[-1] < losses[0] - 1.5
    first, last = metric(run, "val_loss")
    assert last < first < losses[0] and all(0 <= value <= 1 for value in metric(run, "val_accuracy"))


@pytest.mark.parametrize("options", [("--trainer.precision", "bf16-mixed"), ("--trainer.precision", "bf16-true")])
def test_half_precision_keeps_exact_buffers_and_float_weights_on_disk(fit, metric, tmp_path, options):
    fit(tmp_path / "run", *options)
    fit(tmp_path / "exact")
    assert metric(tmp_path / "run") == pytest.approx(metric(tmp_path / "exact"), rel=0.02)
    assert load(tmp_path / "run" / "model").lm.model.model.rotary_emb.inv_freq.dtype == torch.float32


def test_the_users_command_launches_its_own_processes(launch, metric, fit, tmp_path):
    options = (
        "--data.batch_size",
        "2",
        "--trainer.max_steps",
        "2",
        "--model.lm.init_args.config.attention_dropout",
        "0.0",
    )
    said = launch(tmp_path / "two", *options, "--trainer.devices", "2", "--trainer.strategy", "zero2")
    assert "2 x 1 micro-batches x 2 processes" in said
    fit(tmp_path / "one", *options, "--data.batch_size", "4")
    assert metric(tmp_path / "two") == pytest.approx(metric(tmp_path / "one"), abs=1e-5)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"zero_optimization": {"overlap_comm": True}}, "zero or NaN gradients"),
        ({"gradient_accumulation_steps": 2}, "accumulate_grad_batches"),
        ({"zero_optimization": {"stage": 0}}, "does not exist"),
        ({"optimizer": {}}, "replace the recipe's"),
    ],
)
def test_known_bad_settings_are_refused(config, expected):
    with pytest.raises(ValueError, match=expected):
        Zero(config=config)


def test_a_partial_engine_config_is_completed():
    zero = Zero(stage=3, config={"zero_optimization": {"reduce_bucket_size": 7}}).config["zero_optimization"]
    assert zero["reduce_bucket_size"] == 7 and zero["stage"] == 3 and zero["contiguous_gradients"] is True
