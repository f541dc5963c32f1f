"""Mixers in a decoder: each sits where its layer had the self-attention, and the layer runs as it always did.

A layer hands its attention the normalised input and, untouched, what it gets as mask and rotary tables; in the mask's
place comes a `Turn`: the layout of the tokens and the cache that holds the mixer's memory.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from gnomon.vlm.decoder import LayerCache, LayerRun, MixerCache, View
from gnomon.vlm.layout import TokenLayout
from gnomon.vlm.lessons import alone
from gnomon.vlm.mixers.base import Attention, Mimic, Mixer, Rotate, Tables


@dataclass(frozen=True)
class Turn:
    """One call of a mixer: the tokens that its layer sees, and where it remembers them."""

    layout: TokenLayout
    cache: MixerCache | None


class Seat(nn.Module):
    """A mixer, called like the attention of a transformers layer."""

    def __init__(self, mixer: Mixer) -> None:
        super().__init__()
        self.mixer = mixer

    def forward(
        self, hidden_states: Tensor, attention_mask: Turn, position_embeddings: Tables, **unused: Any
    ) -> tuple[Tensor, None]:
        layout, cache = attention_mask.layout, attention_mask.cache
        memory = None if cache is None else cache.memory
        tables = position_embeddings if self.mixer.rotary else None
        out, memory = self.mixer(hidden_states, layout, memory, tables=tables)
        if cache is not None:
            cache.memory = memory
        return out, None


class Mixed:
    """What `decode` has to know of a layer with a seat."""

    def mask(self, view: View, cache: LayerCache | None) -> Turn:
        assert cache is None or isinstance(cache, MixerCache)
        return Turn(view.layout, cache)

    def run(self, layer: nn.Module) -> LayerRun:
        mixer = layer.self_attn.mixer
        if isinstance(mixer, Mimic) and mixer.lessons is not None:
            return partial(_taught, layer)
        return layer


def _taught(layer: nn.Module, hidden: Tensor, **given: Any) -> Any:
    return layer(alone(hidden), **given)


def mix(layers: Sequence[nn.Module], mixers: Sequence[Mixer], *, windows: Sequence[int | None]) -> dict[int, Mixed]:
    """Put fresh copies of the mixers into the layers they are for; of the attention that was there, its maps remain."""
    owners: dict[int, Mixer] = {}
    for mixer in mixers:
        if not mixer.causal:
            raise ValueError(f"{type(mixer).__name__} lets tokens see the future; it is for encoders only")
        for index in mixer.places(len(layers)):
            if index in owners or isinstance(layers[index].self_attn, Seat):
                raise ValueError(f"{type(mixer).__name__}: layer {index} has a mixer already; give each its own layers")
            owners[index] = mixer
    for index, mixer in owners.items():
        layer = layers[index]
        weight = next(layer.self_attn.parameters())
        fresh = type(mixer)(**mixer.init_args)
        fresh.setup(facts(layer.self_attn, index, len(layers), windows[index]))
        layer.self_attn = Seat(fresh.to(weight.device, weight.dtype)).train(layer.training)
    return {index: Mixed() for index in owners}


def facts(attention: nn.Module, layer: int, depth: int, window: int | None) -> Attention:
    """What a mixer learns of a transformers attention: its maps, sizes, scale and rotation."""
    config, dim = attention.config, attention.head_dim
    heads = config.num_attention_heads
    key_heads = getattr(config, "num_key_value_heads", None) or heads
    maps = {name: getattr(attention, name) for name in ("q_norm", "k_norm", "o_proj") if hasattr(attention, name)}
    names = ("q_proj", "k_proj", "v_proj")
    if hasattr(attention, "qkv_proj"):
        maps |= dict(zip(names, cut(attention.qkv_proj, [heads * dim, key_heads * dim, key_heads * dim])))
    else:
        maps |= {name: getattr(attention, name) for name in names}
    # some layers of some architectures have no positions
    rotate = _rotation(attention) if getattr(attention, "use_rope", True) else None
    sizes = (config.hidden_size, heads, key_heads, dim, attention.scaling)
    cap = getattr(config, "attn_logit_softcapping", None)
    return Attention(maps, *sizes, layer, depth, rotate, window, cap)


def cut(linear: nn.Linear, sizes: Sequence[int]) -> list[nn.Linear]:
    """One linear map as several, which share its input."""
    parts = []
    biases = [None] * len(sizes) if linear.bias is None else linear.bias.detach().split(list(sizes))
    for weight, bias in zip(linear.weight.detach().split(list(sizes)), biases):
        part = nn.Linear(linear.in_features, len(weight), bias is not None, device=weight.device, dtype=weight.dtype)
        with torch.no_grad():
            part.weight.copy_(weight)
            if bias is not None:
                part.bias.copy_(bias)
        parts.append(part)
    return parts


def _rotation(attention: nn.Module) -> Rotate:
    apply = sys.modules[type(attention).__module__].apply_rotary_pos_emb

    def rotate(q: Tensor, k: Tensor, tables: Tables) -> tuple[Tensor, Tensor]:
        q, k = apply(q.transpose(1, 2), k.transpose(1, 2), *tables)
        return q.transpose(1, 2), k.transpose(1, 2)

    return rotate
