"""A tiny model made of real parts, for the tests of what is built from them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from checkpoints import MAKERS
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from gnomon.vlm.connectors.base import Bridge
from gnomon.vlm.connectors.mlp import MLP
from gnomon.vlm.encoders.base import Encoder
from gnomon.vlm.encoders.timm import Timm
from gnomon.vlm.hf import CausalLM
from gnomon.vlm.model import VLM

QWEN2 = {
    "model_type": "qwen2",
    "vocab_size": 40,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "tie_word_embeddings": True,
}


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a tokenizer of whole words, w1 to w37."""
    vocabulary = {"<unk>": 0, "<s>": 1, "</s>": 2, **{f"w{i}": i for i in range(3, 38)}}
    words = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    folder = tmp_path_factory.mktemp("words")
    special = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<unk>"}
    PreTrainedTokenizerFast(tokenizer_object=words, **special).save_pretrained(folder)
    return folder


@pytest.fixture
def tiny(tokenizer: Path) -> Callable[..., VLM]:
    """Makes a model of a ViT with 8-pixel patches, a connector and a two-layer Qwen2, the same one every time."""

    def make(
        *,
        encoder: Encoder | None = None,
        connector: Bridge | None = None,
        lm: dict | None = None,
        words: Path = tokenizer,
        seed: int = 0,
        **options,
    ) -> VLM:
        torch.manual_seed(seed)
        vit = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2}
        return VLM(
            encoder or Timm("vit_tiny_patch16_224", args=vit),
            connector or MLP(),
            CausalLM(config={**QWEN2, **(lm or {})}, tokenizer=str(words)),
            **{"image_size": (32, 32), **options},
        ).eval()

    return make


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The directory of one of the tiny checkpoints of support/checkpoints.py, made once."""
    made: dict[str, Path] = {}

    def make(name: str) -> Path:
        if name not in made:
            torch.manual_seed(0)
            made[name] = tmp_path_factory.mktemp("checkpoints") / name
            MAKERS[name](made[name])
        return made[name]

    return make


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Training first: its tests fork, which torch refuses once an earlier test has made autograd start threads."""
    items.sort(key=lambda item: "train" not in item.path.parts)
