"""HFVision: checkpoints on disk, alone or inside a whole CLIP or SigLIP, and what is deleted from them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    Dinov2Config,
    Dinov2Model,
    SiglipConfig,
    SiglipModel,
    ViTConfig,
    ViTModel,
)

from gnomon.vlm.encoders.hf import HFVision

TINY = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 48}
VISION = {**TINY, "image_size": 32, "patch_size": 8}
TEXT = {**TINY, "vocab_size": 50, "max_position_embeddings": 8, "eos_token_id": 1, "bos_token_id": 0, "pad_token_id": 2}


def checkpoints() -> dict:
    return {
        "clip": CLIPModel(CLIPConfig(text_config=TEXT, vision_config=VISION)),
        "siglip": SiglipModel(SiglipConfig(text_config=TEXT, vision_config=VISION)),
        "clip tower": CLIPVisionModel(CLIPVisionConfig(**VISION)),
        "dinov2": Dinov2Model(Dinov2Config(**VISION)),
    }


@pytest.mark.parametrize("name, prefix", [("clip", 1), ("siglip", 0), ("clip tower", 1), ("dinov2", 1)])
@torch.no_grad()
def test_checkpoint_on_disk(tmp_path: Path, name: str, prefix: int):
    whole = checkpoints()[name].eval()
    whole.save_pretrained(tmp_path)
    pixels = torch.randn(2, 3, 32, 32)
    theirs = getattr(whole, "vision_model", whole)(pixels, output_hidden_states=True).hidden_states[-2]
    features = HFVision(str(tmp_path)).eval()(pixels)
    assert torch.equal(features.tokens, theirs[:, prefix:])
    assert features.cls is None if prefix == 0 else torch.equal(features.cls, theirs[:, 0])


def test_half_precision_checkpoints_are_read_as_float32(tmp_path: Path):
    CLIPVisionModel(CLIPVisionConfig(**VISION)).half().save_pretrained(tmp_path)
    assert {p.dtype for p in HFVision(str(tmp_path)).parameters()} == {torch.float32}


@pytest.mark.parametrize("layer, blocks", [(-1, 3), (-2, 2), (0, 1)])
def test_what_is_not_needed_is_deleted(layer: int, blocks: int):
    config = SiglipConfig(vision_config=VISION).vision_config
    names = [name for name, _ in HFVision(config=config.to_dict(), layer=layer).named_parameters()]
    assert len({name.split(".")[3] for name in names if "encoder.layers" in name}) == blocks
    assert not [name for name in names if "head" in name]
    assert any("post_layernorm" in name for name in names) == (layer == -1)


def test_saved_description_needs_no_checkpoint(tmp_path: Path):
    CLIPVisionModel(CLIPVisionConfig(**VISION)).save_pretrained(tmp_path)
    args = HFVision(str(tmp_path), layer=-3).spec()["init_args"]
    assert args.keys() == {"config", "layer"} and args["layer"] == -3
    assert str(tmp_path) not in str(args)


def test_mistakes_are_named_in_one_line(tmp_path: Path):
    ViTModel(ViTConfig(**VISION)).save_pretrained(tmp_path / "vit")
    tower = CLIPVisionModel(CLIPVisionConfig(**VISION))
    state = {k: v for k, v in tower.state_dict().items() if "layers.1.mlp" not in k}
    tower.save_pretrained(tmp_path / "part", state_dict=state)
    for options, words in (
        ({"path": str(tmp_path / "vit")}, "is a 'vit', not one of clip_vision_model"),
        ({"path": str(tmp_path / "nothing")}, "cannot be loaded"),
        ({"path": str(tmp_path / "part")}, "lacks 4 tensors"),
        ({}, "exactly one"),
        ({"config": CLIPVisionConfig(**VISION).to_dict(), "layer": 3}, "layer 3 does not exist .* use -3 to 2"),
    ):
        with pytest.raises(ValueError, match=words) as caught:
            HFVision(**options)
        assert "\n" not in str(caught.value)
