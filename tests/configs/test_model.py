"""Presets: loaded by their own code path from tiny checkpoints of the same architecture, against the originals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModel,
    Dinov2Config,
    Dinov2Model,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from gnomon.vlm.connectors.base import Bridge
from gnomon.vlm.layout import Batch, TokenLayout
from gnomon.vlm.part import build
from gnomon.vlm.save import from_config

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / "configs"
TINY = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 48}
WORDS = {**TINY, "vocab_size": 40, "num_key_value_heads": 1}
TOWERS = {
    "clip": (CLIPVisionModel, CLIPVisionConfig),
    "siglip": (SiglipVisionModel, SiglipVisionConfig),
    "dinov2": (Dinov2Model, Dinov2Config),
}
# Preset: architecture of the language model, size the tower was trained at, patch size, tokens per image
PRESETS = {
    "smollm2": ("llama", None, None, 49),
    "siglip_qwen2.5_0.5b": ("qwen2", 512, 16, 64),
    "siglip_qwen2.5_1.5b": ("qwen2", 384, 14, 729),
    "dinov2_qwen2.5_7b": ("qwen2", 518, 14, 576),
    "clip_vicuna_7b": ("llama", 336, 14, 576),
}


def read(folder: str, name: str) -> dict[str, Any]:
    return yaml.safe_load((CONFIGS / folder / f"{name}.yaml").read_text())["model"]


def test_every_preset_is_tested():
    shipped = {path.stem for path in (CONFIGS / "model").glob("*.yaml")} - {"demo"}
    assert shipped == set(PRESETS)


@pytest.mark.parametrize("name", PRESETS)
@torch.no_grad()
def test_preset(tmp_path: Path, name: str):
    kind, trained_at, patch, tokens = PRESETS[name]
    config = read("model", name)
    classes = {"llama": (LlamaForCausalLM, LlamaConfig), "qwen2": (Qwen2ForCausalLM, Qwen2Config)}[kind]
    lm = classes[0](classes[1](**WORDS)).eval()
    lm.save_pretrained(tmp_path / "lm")
    config["lm"]["init_args"]["path"] = str(tmp_path / "lm")
    if trained_at:
        cls, settings = TOWERS[name.split("_")[0]]
        tower = cls(settings(**TINY, image_size=trained_at, patch_size=patch)).eval()
        tower.save_pretrained(tmp_path / "tower")
        config["encoder"]["init_args"]["path"] = str(tmp_path / "tower")
    (tmp_path / "model.yaml").write_text(yaml.safe_dump({"model": config}))
    model = from_config(tmp_path / "model.yaml").eval()

    ids = torch.arange(3, 9)[None]
    batch = Batch(ids=ids, labels=ids, layout=TokenLayout.text(*ids.shape))
    assert torch.equal(model(batch).logits, lm(ids, use_cache=False).logits)

    features = model.encode([torch.zeros(3, *model.image.size, dtype=torch.uint8)])
    assert features.counts == [tokens]
    if trained_at:
        pixels = torch.randn(1, 3, *model.image.size)
        hidden = tower(pixels, output_hidden_states=True)
        layer = config["encoder"]["init_args"]["layer"]
        expected = hidden.last_hidden_state if layer == -1 else hidden.hidden_states[layer]
        found = model.encoder(pixels).tokens
        assert torch.equal(found, expected[:, expected.shape[1] - found.shape[1] :])


@pytest.mark.parametrize("path", sorted((CONFIGS / "connectors").glob("*.yaml")), ids=lambda path: path.stem)
def test_connector_overlay(path: Path):
    config = read("connectors", path.stem)
    assert list(config) == ["connector"]
    connector = build(config["connector"], Bridge)
    assert type(connector).__module__ == f"gnomon.vlm.connectors.{path.stem}"


def test_every_connector_has_an_overlay():
    modules = {path.stem for path in (ROOT / "vlm/connectors").glob("*.py")} - {"base"}
    assert modules == {path.stem for path in (CONFIGS / "connectors").glob("*.yaml")}
