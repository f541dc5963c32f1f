"""A model that was trained with softmax attention is converted: what learns when, how much, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from gnomon.cli.main import main
from gnomon.train.recipes.lolcats import LoLCATs
from gnomon.vlm.mixing import Seat
from gnomon.vlm.save import load

pytestmark = pytest.mark.timeout(180)

SIZES = {"num_hidden_layers": 4, "attention_dropout": 0.0, "initializer_range": 0.2}
MODEL = [word for name, value in SIZES.items() for word in (f"--model.lm.init_args.config.{name}", str(value))]
HYBRID = {"class_path": "gnomon.vlm.mixers.hedgehog.Hedgehog", "init_args": {"layers": "3:1", "rank": 8}}
GLA = {"class_path": "gnomon.vlm.mixers.gla.GLA", "init_args": {"layers": [3], "rank": 4}}


@pytest.fixture
def converting(tmp_path):
    """Options that convert a model of four layers with these mixers, and the recipe's arguments."""

    def make(*mixers: dict, **recipe) -> tuple[str, ...]:
        path = "gnomon.train.recipes.lolcats.LoLCATs"
        config = {"model": {"mixers": list(mixers)}, "recipe": {"class_path": path, "init_args": recipe}}
        (tmp_path / "convert.yaml").write_text(yaml.safe_dump(config))
        return ("--config", str(tmp_path / "convert.yaml"), *MODEL)

    return make


def moved(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> set[str]:
    assert before.keys() == after.keys()
    return {name for name in before if not torch.equal(before[name], after[name])}


def logged(run: Path, stage: str, name: str) -> list[float]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [row[name] for row in rows if row["stage"] == stage and name in row]


def test_a_trained_model_is_converted(fit, weights, metric, converting, demo, tmp_path, capsys):
    """A teacher that knows its sixty conversations; three of four layers learn its answers, and it knows them again."""
    short, data = ("--recipe.lr", "0", "--trainer.max_steps", "1"), ("--data.batch_size", "10")
    teacher, run = tmp_path / "teacher", tmp_path / "run"
    fit(teacher, *MODEL, *data, "--trainer.max_steps", "120", "--recipe.lr", "3e-3")
    start = ("--model.checkpoint", str(teacher / "model"), *data)
    fit(tmp_path / "same", *MODEL, *start, *short)
    mixers = converting(HYBRID)[:2]
    sft = ("--recipe", "gnomon.train.recipes.sft.SFT")
    fit(tmp_path / "untaught", *MODEL, *mixers, *sft, *start, *short)
    options = converting(HYBRID, transfer_share=0.4, transfer_lr=3e-2, lr=2e-2)
    said = fit(run, *options, *start, "--trainer.max_steps", "100")

    # stage 1: the model reads as its teacher does, only the maps learn, and they come to answer as softmax does
    assert logged(run, "transfer", "loss")[0] == pytest.approx(metric(tmp_path / "same")[0], abs=1e-4)
    taught, after = load_file(run / "stages" / "transfer" / "model" / "model.safetensors"), weights(run)
    attention = [f"lm.model.model.layers.{i}.self_attn.mixer." for i in (0, 1, 2)]
    maps = {f"{a}learned_{n}.{w}" for a in attention for n in "qk" for w in ("weight", "bias")}
    # what is of low rank is drawn anew for every conversion
    assert {name for name in moved(weights(tmp_path / "untaught"), taught) if ".low_" not in name} == maps
    for layer in (0, 1, 2):
        errors = logged(run, "transfer", f"error/{layer}")
        assert sum(errors[-5:]) < 0.5 * sum(errors[:5]), errors
        assert f"{layer}: {errors[0]:.3g} -> {errors[-1]:.3g}" in said
    assert not logged(run, "transfer", "error/3") and not logged(run, "tune", "error")

    # stage 2: changes of low rank alone, on the loss of the converted model
    assert moved(taught, after) == {f"{a}low_{n}.{k}.weight" for a in attention for n in "qkvo" for k in (0, 1)}
    known, untaught, found = metric(teacher)[-6:], metric(tmp_path / "untaught")[0], logged(run, "tune", "loss")
    assert found[0] < 0.5 * untaught
    assert sum(found[-6:]) / 6 < sum(known) / 6 + 0.25

    # and it is used as any other model
    model = load(run / "model")
    assert [isinstance(layer.self_attn, Seat) for layer in model.lm.layers] == [True, True, True, False]
    capsys.readouterr()
    assert main(["ask", str(run / "model"), "--image", str(demo / "0.png"), "what is point 0?"]) == 0
    assert capsys.readouterr().out.split() == ["7"]


# within either stage
@pytest.mark.parametrize("nth", [2, 5])
def test_killed_and_resumed_equals_straight(fit, killed, weights, metric, converting, tmp_path, nth):
    options = (*converting(HYBRID, transfer_share=0.5, lr=1e-2), "--checkpoint.every", "1")
    straight, run = tmp_path / "straight", tmp_path / "run"
    fit(straight, *options)
    killed(run, "training_step", nth, *options)
    said = fit(run, *options, "--resume")
    assert ("stage transfer" in said) == (nth == 2) and "resumed from" in said
    assert not moved(weights(straight), weights(run))
    assert metric(run, "error") == metric(straight, "error")


def test_defaults_are_the_papers():
    transfer, tune = LoLCATs().stages()
    assert transfer.rates == {"lm.*.mixer.learned_*": 1e-2} and tune.rates == {"lm.*.mixer.low_*": 1e-4}
    (callback,) = transfer.callbacks()
    assert callback.weight == 1000


def placed(mixer: dict, **args) -> dict:
    return {**mixer, "init_args": {**mixer["init_args"], **args}}


@pytest.mark.parametrize(
    ("mixers", "recipe", "why"),
    [
        ([placed(HYBRID, layers=[1, 4])], {}, "Hedgehog: layers [1, 4] are not some of 0 to 3"),
        ([placed(HYBRID, layers="4:0:1")], {}, "Hedgehog: layers '4:0:1' are none"),
        ([placed(HYBRID, rank=0)], {}, "lm.*.mixer.low_*, which is no parameter of this model; give the mixers a rank"),
        ([HYBRID], {"rates": {"conector.*": 1e-3}}, "trains conector.*, which is no parameter of this model"),
        ([], {}, "the model has no mixers to teach"),
        ([HYBRID, GLA], {}, "the mixer of layer 3 is new and no stage trains any of its"),
        ([HYBRID, GLA], {"rates": {"lm.*": 1e-3}}, "GLA cannot mimic softmax attention"),
        ([HYBRID], {"transfer_share": 1.0}, "transfer_share 1.0 leaves a stage without steps"),
        ([HYBRID], {"weight": 0.0}, "weight 0.0 of the errors teaches nothing"),
    ],
)
def test_what_cannot_be_converted_is_refused_before_any_step(fit, converting, tmp_path, mixers, recipe, why):
    said = fit(tmp_path / "run", *converting(*mixers, **recipe), code=2)
    assert why in said.splitlines()[-1] and "Traceback" not in said and "Namespace" not in said
    assert not (tmp_path / "run").exists()


def test_a_new_mixer_that_nothing_trains_is_refused(fit, converting, tmp_path):
    sft = ("--recipe", "gnomon.train.recipes.sft.SFT", "--recipe.rates", "{connector.*: 1e-3}")
    said = fit(tmp_path / "run", *converting(GLA)[:2], *MODEL, *sft, code=2)
    assert "the mixer of layer 3 is new and no stage trains any of its" in said.splitlines()[-1]
