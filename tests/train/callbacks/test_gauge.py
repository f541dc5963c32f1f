"""The log says what a fusion does, and a line each says what keeps it from learning."""

from __future__ import annotations

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from gnomon.vlm.geometry.tinygeo import TinyGeo

pytestmark = pytest.mark.timeout(180)

GATED = {"class_path": "gnomon.vlm.fusion.gated.Gated", "init_args": {"merge": 2}}
ADD = {"class_path": "gnomon.vlm.fusion.add.Add", "init_args": {"merge": 2, "zero": True}}
KNOWN = {"class_path": "gnomon.vlm.geometry.known.Known", "init_args": {"patch": 8, "octaves": 2}}
TINY = {"class_path": "gnomon.vlm.geometry.tinygeo.TinyGeo", "init_args": {"heads": []}}
REST = ("encoder.*", "connector.*", "lm.*")


def closed(fusion: dict) -> dict:
    return {"class_path": "gnomon.vlm.fusion.residual_gate.ResidualGate", "init_args": {"fusion": fusion}}


@pytest.fixture
def options(tmp_path):
    """The command line of three steps on two scenes each."""

    def make(fusion: dict, *, geometry: dict = KNOWN, rates: tuple[str, ...] = (*REST, "fusion.*")) -> list[str]:
        scenes = {"count": 6, "seed": 0, "size": [64, 64], "tasks": ["nearer"], "prompt": "words"}
        source = {"class_path": "gnomon.data.sources.scenes.source.Scenes", "init_args": scenes}
        config = {
            "model": {"geometry": geometry, "fusion": fusion},
            "recipe": {
                "class_path": "gnomon.train.recipes.sft.SFT",
                "init_args": {"rates": dict.fromkeys(rates, 0.01)},
            },
            "data": {"train": source, "batch_size": 2},
            "trainer": {"max_steps": 3},
        }
        path = tmp_path / "gauge.yaml"
        path.write_text(yaml.safe_dump(config))
        return ["--config", str(path)]

    return make


def test_a_gate_opens_in_the_log(fit, metric, options, tmp_path):
    said = fit(tmp_path / "run", *options(closed(GATED)))
    ratio, opened = metric(tmp_path / "run", "fusion_ratio"), metric(tmp_path / "run", "fusion_open")
    # before the first update it is closed, which is the plain model
    assert ratio[0] == opened[0] == 0
    assert len(ratio) == len(opened) == 3 and min(*ratio[1:], *opened[1:]) > 0 and max(opened) < 1
    assert "warning" not in said
    header = (tmp_path / "run" / "metrics.csv").read_text().splitlines()[0].split(",")
    assert {"loss", "fusion_ratio", "fusion_open"} <= set(header)


def test_models_without_a_fusion_have_no_such_columns(fit, metric, tmp_path):
    fit(tmp_path / "run", "--trainer.max_steps", "1")
    assert metric(tmp_path / "run", "fusion_ratio") == []


@pytest.mark.parametrize(
    ("given", "line"),
    [
        # a closed gate before a layer of zeros: neither has a gradient
        (
            {"fusion": closed(ADD)},
            "warning: no parameter of the fusion ResidualGate gets a gradient at step 0, the first",
        ),
        (
            {"fusion": ADD, "rates": REST},
            "warning: the recipe's rates name none of the fusion's 5 tensors, so Add",
        ),
    ],
    ids=["dead", "not trained"],
)
def test_one_line_says_what_is_wrong(fit, options, tmp_path, given, line):
    said = fit(tmp_path / "run", *options(**given))
    warned = [one for one in said.splitlines() if one.startswith("warning")]
    assert len(warned) == 1 and warned[0].startswith(line)


def test_rates_for_everything_leave_a_frozen_encoder_out(ranks, fit, options, tmp_path):
    """Under DDP, too, which would wait for gradients that never come."""
    torch.manual_seed(1)
    weights = {f"geometry.{name}": value for name, value in TinyGeo(heads=()).state_dict().items()}
    save_file({name.removeprefix("geometry."): value for name, value in weights.items()}, tmp_path / "tiny.safetensors")
    tiny = {**TINY, "init_args": {"heads": [], "weights": str(tmp_path / "tiny.safetensors")}}
    given = options({**ADD, "init_args": {"merge": 2}}, geometry=tiny, rates=("*",))
    assert "warning" not in fit(tmp_path / "one", *given)
    assert "warning" not in ranks(tmp_path / "two", *given, "--data.batch_size", "1", "--trainer.strategy", "ddp")
    for name in ("one", "two"):
        trained = load_file(tmp_path / name / "model" / "model.safetensors")
        assert all(torch.equal(trained[key], value) for key, value in weights.items())


@pytest.mark.parametrize("strategy", ["zero3", "fsdp2"])
def test_ranks_that_shard_say_the_same(ranks, fit, metric, options, tmp_path, strategy):
    one, two = tmp_path / "one", tmp_path / "two"
    given = [*options(GATED), "--model.lm.init_args.config.attention_dropout", "0.0"]
    fit(one, *given)
    assert "warning" not in ranks(two, *given, "--data.batch_size", "1", "--trainer.strategy", strategy)
    for column in ("fusion_ratio", "fusion_open"):
        assert len(metric(one, column)) == 3 and metric(two, column) == pytest.approx(metric(one, column), rel=1e-4)
