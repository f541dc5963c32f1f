"""A tiny random model in a directory, with the tokenizer and template that models trained from scratch have."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from gnomon.data import tokenizer
from gnomon.eval.session import Loaded, open_model
from gnomon.vlm.connectors.mlp import MLP
from gnomon.vlm.encoders.timm import Timm
from gnomon.vlm.fusion.base import Fusion
from gnomon.vlm.geometry.base import GeometryEncoder
from gnomon.vlm.hf import CausalLM
from gnomon.vlm.model import VLM
from gnomon.vlm.save import save

SIZE = 112


@pytest.fixture
def flop_counter() -> Callable[[], FlopCounterMode]:
    """torch's own counter; before 2.15 it passed over its fused attention on the CPU, though it has the formula."""

    def shapes(query: torch.Size, key: torch.Size, value: torch.Size, *_: object, **__: object) -> int:
        return sdpa_flop_count(query, key, value)

    fused = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: shapes}
    return lambda: FlopCounterMode(display=False, custom_mapping=fused)


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    words = [
        "What is the point lying on line AB?",
        "The lines are: BC, DE acute or obtuse triangle",
        "How many circles",
    ]
    tokenizer.save(tokenizer.train(words, size=400), folder / "words")
    torch.manual_seed(3)
    vit = {"img_size": SIZE, "patch_size": 16, "embed_dim": 24, "depth": 1, "num_heads": 2}
    lm = {
        "model_type": "qwen2",
        "vocab_size": 400,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        # wide enough that the random model says different things about different pictures
        "initializer_range": 0.3,
    }
    model = VLM(
        Timm("vit_tiny_patch16_224", args=vit),
        MLP(),
        CausalLM(config=lm, tokenizer=str(folder / "words")),
        image_size=(SIZE, SIZE),
        template="demo",
    )
    return save(model.eval(), folder / "tiny")


@pytest.fixture(scope="session")
def surveying(model_dir: Path) -> Callable[[GeometryEncoder, Fusion], Loaded]:
    """Makes the tiny model with a geometry encoder and a fusion, as it is opened from a directory."""
    plain = open_model(str(model_dir), device="cpu")

    def make(geometry: GeometryEncoder, fusion: Fusion) -> Loaded:
        torch.manual_seed(0)
        parts = plain.model.encoder, plain.model.connector, plain.model.lm
        options = {"image_size": (SIZE, SIZE), "template": "demo", "geometry": geometry, "fusion": fusion}
        model = VLM(*parts, **options).eval()
        return replace(plain, model=model, processor=replace(plain.processor, views=model.views))

    return make
