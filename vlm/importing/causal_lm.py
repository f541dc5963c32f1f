"""Language models of transformers and their tokenizers, from wherever these lie: the one file that knows their classes.

A directory, a hub id, a .gguf file or a configuration alone. No code that comes with a checkpoint is run.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from gnomon.vlm import shipped

SUPPORTED = (
    "gemma",
    "gemma2",
    "gemma3_text",
    "llama",
    "mistral",
    "olmo2",
    "phi3",
    "qwen2",
    "qwen2_5_vl_text",
    "qwen3",
    "smollm3",
)
"""Model types whose own forward the loop reproduces bit by bit; each is in the tests."""

HEADLESS = ("qwen2_5_vl_text",)
"""Those that transformers has no causal-LM class for; their positions have three axes."""


def pretrained(path: str, *, dtype: str | None, attention: str) -> nn.Module:
    """With its weights; `path` as in CausalLM."""
    kind = _dtype(dtype)
    source, gguf = _locate(path)
    with _reading(f"language model {path!r}"):
        config = AutoConfig.from_pretrained(source, trust_remote_code=False, gguf_file=gguf)
    _check_config(config, attention)
    options: dict[str, Any] = {"dtype": kind or "auto"}
    if gguf is not None:
        options = {"dtype": kind or torch.float32, "gguf_file": gguf}
        # from version 5 on weights may stay packed, which cannot be trained
        if hasattr(transformers, "GgufConfig"):
            options["quantization_config"] = transformers.GgufConfig(gguf_file=gguf, dequantize=True)
    with _reading(f"language model {path!r}"):
        model = AutoModelForCausalLM.from_pretrained(
            source, config=config, trust_remote_code=False, attn_implementation=attention, **options
        )
    # unpacked, they are weights like any other: off with the mark that keeps them from being saved
    if gguf is not None and getattr(model, "hf_quantizer", None) is not None:
        model.hf_quantizer.remove_quantization_config(model)
    return model


def random(config: Mapping[str, Any], *, dtype: str | None, attention: str) -> nn.Module:
    """One of this configuration with random weights."""
    arguments = dict(config)
    kind = arguments.pop("model_type", None)
    if kind not in SUPPORTED:
        raise ValueError(_unsupported(kind))
    for name in ("num_hidden_layers", "num_attention_heads", "num_key_value_heads", "hidden_size"):
        if isinstance(count := arguments.get(name), int) and count < 1:
            raise ValueError(f"language model config: {name} {count}; use 1 or more")
    own = _dtype(arguments.pop("dtype", None))
    wanted = _dtype(dtype) or own or torch.float32
    with _reading(f"language model config of type {kind!r}"):
        resolved = AutoConfig.for_model(kind, **arguments)
    _check_config(resolved, attention)
    if kind in HEADLESS:
        return _Headed(AutoModel.from_config(resolved, attn_implementation=attention, dtype=wanted))
    return AutoModelForCausalLM.from_config(resolved, attn_implementation=attention, dtype=wanted)


def _locate(path: str) -> tuple[str, str | None]:
    """What from_pretrained wants: a directory or hub id, and the name of the .gguf file in it if there is one."""
    if path.startswith("pypi:"):
        name = path.removeprefix("pypi:")
        try:
            package = importlib.util.find_spec(name)
        except ModuleNotFoundError:
            # of a dotted name whose first part is absent
            package = None
        if package is None:
            raise ValueError(f"language model {path!r}: package {name!r} is not installed; install it with pip")
        files = [file for place in package.submodule_search_locations or () for file in Path(place).glob("*.gguf")]
        if len(files) != 1:
            raise ValueError(f"language model {path!r}: the package has {len(files)} .gguf files, not 1; name a file")
        return str(files[0].parent), files[0].name
    if path.startswith(shipped.PREFIX):
        found = shipped.resolve(path)
        if not found.exists():
            raise ValueError(f"language model {path!r} is not in the package's configs; correct the name")
        return str(found), None
    if path.endswith(".gguf"):
        if not Path(path).is_file():
            raise ValueError(f"language model {path!r} is not a file; correct the path")
        return str(Path(path).parent), Path(path).name
    if path.startswith(("/", "./", "../", "~")) and not Path(path).is_dir():
        raise ValueError(f"language model {path!r} is not a directory; correct the path")
    return path, None


def tokenizer(path: str | None) -> PreTrainedTokenizerBase:
    if path is None:
        raise ValueError("the language model has no tokenizer; give a directory, a hub id or a tokenizer.json file")
    if path.endswith(".json"):
        if not Path(path).is_file():
            raise ValueError(f"tokenizer {path!r} is not a file; correct the path")
        # a saved tokenizer has its special tokens in a second file, which the directory's loader reads
        if not Path(path).with_name("tokenizer_config.json").is_file():
            return PreTrainedTokenizerFast(tokenizer_file=path)
        path = str(Path(path).parent)
    source, gguf = _locate(path)
    with _reading(f"tokenizer {path!r}"):
        return AutoTokenizer.from_pretrained(source, gguf_file=gguf, use_fast=True, trust_remote_code=False)


@contextmanager
def _reading(what: str) -> Iterator[None]:
    """One line about what transformers cannot use, of the many that it writes."""
    try:
        yield
    except StrictDataclassError as error:
        raise ValueError(f"{what} is not valid: {' '.join(str(error).split())}") from error
    except (OSError, ValueError, ImportError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"{what} cannot be loaded: {reason}") from error


def _dtype(name: str | None) -> torch.dtype | None:
    if name not in (None, "float32", "bfloat16", "float16"):
        raise ValueError(f"dtype {name!r} is unknown; use float32, bfloat16 or float16")
    return None if name is None else getattr(torch, name)


def _check_config(config: Any, attention: str) -> None:
    if config.model_type not in SUPPORTED:
        raise ValueError(_unsupported(config.model_type))
    if getattr(config, "use_bidirectional_attention", False):
        raise ValueError(f"{config.model_type} with use_bidirectional_attention is an encoder; use a causal model")
    if config.model_type in HEADLESS and set(getattr(config, "layer_types", None) or ()) - {"full_attention"}:
        raise ValueError(f"{config.model_type} with sliding windows is not supported; use one with full attention")
    # these take masks in a form of their own
    foreign = attention == "flex_attention" or attention.startswith(("flash_attention", "paged|"))
    if foreign or attention not in (*ALL_ATTENTION_FUNCTIONS, "eager"):
        raise ValueError(
            f"attention {attention!r} is not supported; use sdpa, eager or a name registered with "
            "transformers.AttentionInterface whose function takes a bool mask"
        )
    if attention == "sdpa" and getattr(config, "attn_logit_softcapping", None) is not None:
        raise ValueError(f"attention 'sdpa' cannot cap the attention logits of {config.model_type}; use eager")


class _Headed(nn.Module):
    """A decoder that transformers has no causal-LM class for, with a head; parts are named as in such classes."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.config = model, model.config
        self.lm_head = nn.Linear(self.config.hidden_size, self.config.vocab_size, bias=False, dtype=model.dtype)
        if getattr(self.config, "tie_word_embeddings", False):
            self.lm_head.weight = model.embed_tokens.weight
        else:
            nn.init.normal_(self.lm_head.weight, std=self.config.initializer_range)

    @property
    def dtype(self) -> torch.dtype:
        return self.model.dtype


def _unsupported(kind: str | None) -> str:
    return f"language model type {kind!r} is not supported; use one of {', '.join(SUPPORTED)}"
