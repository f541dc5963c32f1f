"""Overlays of operators load into a tiny model and act in it; every operator that a model can take has one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml
from sequences import cells, padded, picture, text

from gnomon.train.parsing import FitCLI
from gnomon.vlm.encoders.timm import Timm
from gnomon.vlm.hf import CausalLM
from gnomon.vlm.model import VLM
from gnomon.vlm.operators import Operator
from gnomon.vlm.save import from_config

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / "configs"
OVERLAYS = {path.stem: path for path in sorted((CONFIGS / "operators").glob("*.yaml"))}
EVERY = sorted(
    file.stem
    for family in ("softmax", "linear", "sparse")
    for file in (ROOT / "kernels" / family).glob("*.py")
    if file.stem != "base"
)
# Where nothing is hidden from 196 cells and a few words, or a decoder is read with softmax attention all the same
AS_SOFTMAX = {"exact", "infllm_v2", "power", "radial", "s2"}
VIT = {"img_size": 112, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2}
TINY = {
    "encoder": {"init_args": {"name": "vit_tiny_patch16_224", "layer": -1, "args": VIT}},
    "lm": {
        "init_args": {
            "config": {
                "model_type": "llama", "vocab_size": 1024, "hidden_size": 32, "intermediate_size": 48,
                "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
            }
        }
    },
}  # fmt: skip


def load(folder: Path, *overlays: Path) -> VLM:
    """The demo with a tiny transformer on either side, and overlays, as the command line puts them together."""
    (folder / "tiny.yaml").write_text(yaml.safe_dump({"model": TINY}))
    files = [CONFIGS / "model" / "demo.yaml", CONFIGS / "demo" / "quick.yaml", folder / "tiny.yaml", *overlays]
    cli = FitCLI([*(word for file in files for word in ("--config", str(file))), "--out", str(folder / "out")])
    return from_config({name: value for name, value in cli.plain()["model"].items() if name != "checkpoint"}).eval()


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> VLM:
    """With softmax attention; initial weights are so small that attention hardly matters."""
    torch.manual_seed(0)
    model = load(tmp_path_factory.mktemp("plain"))
    for weight in model.parameters():
        if weight.dim() == 2:
            torch.nn.init.normal_(weight, std=0.2)
    return model


def given(path: Path) -> dict[str, list[dict]]:
    parts = yaml.safe_load(path.read_text())["model"]
    return {place: part["init_args"]["operators"] for place, part in parts.items()}


@pytest.mark.parametrize("overlay", OVERLAYS.values(), ids=OVERLAYS)
@torch.no_grad()
def test_an_overlay_loads_and_its_operator_acts(overlay, tmp_path, plain):
    ((_, (operator,)),) = given(overlay).items()
    assert operator["name"] == overlay.stem
    model = load(tmp_path, overlay)
    # without parameters: the weights are those of the model as it was
    model.load_state_dict(plain.state_dict())
    batch = padded([[*text([5, 6]), *cells(0, (14, 14)), *text([7, 8, 9])]], [picture((112, 112), 0)])
    found, expected = (one(batch).logits for one in (model, plain))
    assert found.isfinite().all()
    same = torch.allclose(found, expected, atol=1e-4, rtol=1e-4)
    assert same == (overlay.stem in AS_SOFTMAX)


def taken(place: str, operator: dict) -> bool:
    """Whether a part of a model can be made with the operator, and runs."""
    try:
        if place == "encoders":
            Timm("vit_tiny_patch16_224", args=VIT, operators=[operator]).eval()(torch.zeros(1, 3, 112, 112))
        else:
            lm = CausalLM(config=TINY["lm"]["init_args"]["config"], operators=[operator]).eval()
            layout = padded([[*text([5, 6]), *cells(0, (14, 14)), *text([7])]], []).layout
            lm(torch.zeros(*layout.shape, 32), layout)
    except ValueError:
        return False
    return True


@pytest.mark.parametrize("overlay", OVERLAYS.values(), ids=OVERLAYS)
@torch.no_grad()
def test_an_overlay_says_which_part_of_a_model_can_take_it(overlay):
    said = overlay.read_text().removeprefix("# ").partition(":")[0].lower().split(" and ")
    ((place, (operator,)),) = given(overlay).items()
    assert {name for name in ("encoders", "decoders") if taken(name, operator)} == set(said)
    # the first that it names is the one that it is written for
    assert {"encoder": "encoders", "lm": "decoders"}[place] == said[0]


@torch.no_grad()
def test_every_operator_has_an_overlay():
    mixers = {path.stem for path in (CONFIGS / "mixers").glob("*.yaml")}
    assert set(OVERLAYS) <= set(EVERY)
    # the blocks of a prompt are known to who writes the prompt
    assert set(EVERY) - set(OVERLAYS) - mixers == {"blockrank"}
    with pytest.raises(ValueError, match="needs blocks"):
        Operator("blockrank")
    missed = [name for name in set(EVERY) - set(OVERLAYS) if taken("encoders", {"name": name})]
    missed += [name for name in set(EVERY) - set(OVERLAYS) if taken("decoders", {"name": name})]
    assert not missed, f"models can take {missed}: write configs/operators/NAME.yaml"
