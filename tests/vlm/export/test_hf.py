"""Export: plain transformers, in a process of its own, gives the same logits; what LLaVA cannot express is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers.models import WordLevel
from transformers import (
    AutoProcessor,
    CLIPVisionConfig,
    Dinov2Config,
    Dinov2WithRegistersConfig,
    LlavaForConditionalGeneration,
    PreTrainedTokenizerFast,
    SiglipVisionConfig,
)

from gnomon.data.processor import Processor
from gnomon.data.sample import Sample, Turn
from gnomon.vlm.connectors.pixel_shuffle import PixelShuffle
from gnomon.vlm.encoders.hf import HFVision
from gnomon.vlm.export import hf as module
from gnomon.vlm.export.hf import compare, export_hf, obstacle
from gnomon.vlm.layout import Batch, TokenLayout

VISION = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 48}
TOWERS = {
    "clip": CLIPVisionConfig,
    "siglip": SiglipVisionConfig,
    "dinov2": Dinov2Config,
    "registers": Dinov2WithRegistersConfig,
}


def tower(name: str, layer: int = -2) -> HFVision:
    torch.manual_seed(0)
    config = TOWERS[name](**VISION, image_size=32, patch_size=8)
    return HFVision(config=config.to_dict(), layer=layer)


def test_a_fresh_process_with_plain_transformers_agrees(tmp_path: Path, tiny):
    model = tiny(encoder=tower("clip"), lm={"model_type": "llama", "tie_word_embeddings": False})
    export_hf(model, tmp_path / "out")
    assert compare(tmp_path / "out", model) <= 1e-5
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


@torch.no_grad()
@pytest.mark.parametrize("damage", [0.01, float("nan")])
def test_a_wrong_weight_is_noticed(tmp_path: Path, tiny, monkeypatch, damage):
    model = tiny(encoder=tower("clip"))
    file = export_hf(model, tmp_path / "out") / "model.safetensors"
    weights = load_file(file)
    name = next(name for name in weights if "linear_1.bias" in name)
    save_file({**weights, name: weights[name] + damage}, file, metadata={"format": "pt"})

    def reloaded(path: Path, ids: torch.Tensor, pixels: torch.Tensor) -> torch.Tensor:
        return LlavaForConditionalGeneration.from_pretrained(path).eval()(input_ids=ids, pixel_values=pixels).logits

    monkeypatch.setattr(module, "_reloaded", reloaded)
    with pytest.raises(ValueError, match="apart, more than"):
        compare(tmp_path / "out", model)


@pytest.mark.parametrize(
    ("name", "layer", "lm"),
    [
        ("clip", -1, {}),
        ("clip", 0, {"model_type": "qwen3"}),
        ("siglip", -2, {"tie_word_embeddings": False, "vocab_size": 38}),
        ("dinov2", -2, {"model_type": "mistral", "vocab_size": 38}),
    ],
)
@torch.no_grad()
def test_other_towers_and_layers(tmp_path: Path, tiny, name, layer, lm):
    """The same in this process, which is faster; a vocabulary without a spare row grows by the image token."""
    model = tiny(encoder=tower(name, layer), lm=lm)
    export_hf(model, tmp_path / "out")
    theirs = LlavaForConditionalGeneration.from_pretrained(tmp_path / "out").eval()
    processor = AutoProcessor.from_pretrained(tmp_path / "out")
    image = processor.tokenizer.convert_tokens_to_ids("<image>")
    assert image == theirs.config.image_token_id == 38
    ids = torch.tensor([[3, *[image] * 16, 4, 5]])
    pixels = torch.randint(0, 256, (3, 32, 32), dtype=torch.uint8)
    layout = TokenLayout.text(*ids.shape)
    layout.kind[ids == image] = 2
    ours = model(Batch(ids=ids.masked_fill(ids == image, 0), labels=ids, layout=layout, pixels=[pixels])).logits
    found = theirs(input_ids=ids, pixel_values=(pixels[None] / 255 - 0.5) / 0.5).logits
    torch.testing.assert_close(found[..., : ours.shape[-1]], ours, atol=1e-5, rtol=0)


@pytest.mark.parametrize("fit", ["resize", "pad", "crop"])
def test_prompt_and_pixels_are_those_of_training(tmp_path: Path, tiny, fit):
    """transformers' processor on a conversation and a picture, against ours."""
    words = ("<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>", "user", "assistant", "\n", "Why")
    raw = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.Split("\n", "isolated")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, unk_token="<unk>", bos_token="<s>", eos_token="</s>")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    options = {"image_fit": fit, "template": "chatml", "image_mean": (0.2, 0.5, 0.8)}
    model = tiny(encoder=tower("clip"), words=tmp_path / "tokenizer", **options)
    export_hf(model, tmp_path / "out")

    ramp = np.arange(90 * 64 * 3).reshape(90, 64, 3) * 255 / (90 * 64 * 3)
    picture = ramp.astype(np.uint8)
    ours = Processor(model.tokenizer, "chatml", model.image).example(
        Sample("one", (Turn("user", "<image>\nWhy"),), images=(picture,)), train=False
    )
    processor = AutoProcessor.from_pretrained(tmp_path / "out")
    content = [{"type": "image", "image": picture}, {"type": "text", "text": "Why"}]
    theirs = processor.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    ids = theirs["input_ids"][0]
    is_image = ids == processor.tokenizer.convert_tokens_to_ids("<image>")
    assert is_image.tolist() == (torch.as_tensor(ours.image) >= 0).tolist()
    assert ids[~is_image].tolist() == torch.as_tensor(ours.ids)[~is_image].tolist()
    pixels = (ours.pixels[0] / 255 - model.mean) / model.std
    # one step of 8 bits is 0.016; filters round differently, and where padding begins they blend
    difference = (theirs["pixel_values"][0] - pixels).abs()
    assert difference.mean() < (0.05 if fit == "pad" else 0.01) and difference.median() < 0.02


def test_an_export_replaces_only_an_export(tmp_path: Path, tiny):
    model = tiny(encoder=tower("clip"))
    export_hf(model, tmp_path / "out")
    export_hf(model, tmp_path / "out")
    (tmp_path / "other").mkdir()
    (tmp_path / "other/thesis.tex").write_text("years of work")
    with pytest.raises(ValueError, match="stays as it is"):
        export_hf(model, tmp_path / "other")
    assert [p.name for p in (tmp_path / "other").iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "its encoder is Timm"),
        ({"encoder": tower("clip"), "connector": PixelShuffle(2)}, "its connector is PixelShuffle"),
        ({"encoder": tower("clip"), "image_size": (32, 48)}, r"its image size is \(32, 48\)"),
        ({"encoder": tower("siglip", -1)}, "ends with a norm"),
        ({"encoder": tower("registers")}, "has 5 tokens before the patches"),
        ({"encoder": tower("clip"), "lm": {"model_type": "gemma", "head_dim": 8}}, "gemma scales"),
    ],
)
def test_what_llava_cannot_express(tmp_path: Path, tiny, options, words):
    model = tiny(**options)
    assert obstacle(model) is not None
    with pytest.raises(ValueError, match=words) as caught:
        export_hf(model, tmp_path / "out")
    assert "\n" not in str(caught.value) and not (tmp_path / "out").exists()
