"""Arithmetic of a decoder by its shape: operations of prefill and decoding, and bytes of its caches.

Two operations (FLOPs) per multiply-add (MAC). Matrix products only, of all tokens. Papers count attention as the full
square of queries and keys; with `causal` only pairs count in which the query may look at the key, which is what causal
kernels compute. What a layer has instead of softmax attention counts as what it does: an operator or a mixer by the
cost that its record in kernels/ states, at the record's default sizes of windows and blocks; a static pattern by the
pairs that it lets through. Encoder and connector are not in it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache

import torch
from torch import nn

from gnomon.kernels.masks.blocks import visible_pairs
from gnomon.kernels.masks.tokens import Tokens
from gnomon.kernels.op import Shape, recording
from gnomon.vlm.decoder import Span
from gnomon.vlm.hf import CausalLM
from gnomon.vlm.layout import TokenLayout
from gnomon.vlm.mixers.base import FeatureMap, ShortConv
from gnomon.vlm.operators import Operated, tokens_of

Inside = Callable[[int, int, bool], float]
"""FLOPs of so many queries, the last ones of so many keys, between a layer's linear maps; full square or causal."""


@dataclass(frozen=True)
class Instead:
    """What a layer does instead of softmax attention.

    maps    multiply-adds per token of its own linear maps; None: it has those of the attention
    memory  bytes that it remembers of a row, and of each of its tokens beside them; None: it caches keys and values
    """

    inside: Inside
    maps: int | None = None
    memory: tuple[int, int] | None = None


@dataclass(frozen=True)
class Decoder:
    """The shape of a decoder whose feed-forward part is gated, as that of all supported ones is."""

    layers: int
    width: int
    inner: int
    heads: int
    key_heads: int
    head_width: int
    vocabulary: int
    instead: Mapping[int, Instead] = field(default_factory=dict)

    @classmethod
    def of(cls, lm: CausalLM, layout: TokenLayout | None = None) -> Decoder:
        """layout: the prompt, one row without padding, on which patterns are counted; text alone if left out."""
        config = lm.model.config
        shape = cls(
            layers=config.num_hidden_layers,
            width=config.hidden_size,
            inner=config.intermediate_size,
            heads=config.num_attention_heads,
            key_heads=config.num_key_value_heads,
            head_width=getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads,
            vocabulary=config.vocab_size,
        )
        acting = {index: own for index, own in lm.operators.items() if index in lm.placed}
        # once for all layers that share an operator: patterns are counted pair by pair
        made = {own.operator: shape._operator(own, layout) for own in acting.values()}
        instead = {index: made[own.operator] for index, own in acting.items()}
        return replace(shape, instead=instead | {index: _mixer(lm, index) for index in lm.mixed})

    def layer(self, tokens: int, inside: float, maps: int | None = None) -> int:
        """FLOPs of one layer for so many tokens, `inside` of them between its linear maps."""
        if maps is None:
            maps = 2 * (self.heads + self.key_heads) * self.head_width * self.width
        return round(2 * tokens * (maps + 3 * self.width * self.inner) + inside)

    def attention(self, pairs: float) -> float:
        """FLOPs of softmax attention over so many pairs of a query and a key."""
        return 4 * pairs * self.heads * self.head_width

    def prefill(self, lengths: Sequence[int], *, causal: bool = False) -> int:
        """FLOPs of a row whose layers get so many tokens each, without the head."""
        return sum(self._layer(index, n, n, causal) for index, n in enumerate(lengths))

    def step(self, lengths: Sequence[int]) -> int:
        """FLOPs of one more token, the head included; `lengths`: the keys it sees in each layer, its own included."""
        layers = sum(self._layer(index, 1, keys, True) for index, keys in enumerate(lengths))
        return layers + 2 * self.width * self.vocabulary

    def cache_bytes(self, lengths: Sequence[int], item: int) -> int:
        """What a row's layers remember of so many tokens; `item`: bytes of a number in keys and values."""
        own = {index: instead.memory for index, instead in self.instead.items() if instead.memory is not None}
        usual = 0, 2 * self.key_heads * self.head_width * item
        kept = (own.get(index, usual) for index in range(len(lengths)))
        return sum(fixed + n * each for n, (fixed, each) in zip(lengths, kept))

    def _layer(self, index: int, queries: int, keys: int, causal: bool) -> int:
        own = self.instead.get(index)
        if own is None:
            return self.layer(queries, self.attention(_pairs(queries, keys, causal)))
        return self.layer(queries, own.inside(queries, keys, causal), own.maps)

    def _operator(self, operated: Operated, layout: TokenLayout | None) -> Instead:
        module = operated.operator.module

        def cost(queries: int, keys: int, causal: bool) -> float:
            sizes = queries, keys, self.heads, self.key_heads, self.head_width, self.head_width
            return module.OP.cost(Shape(1, *sizes, causal=causal)).operations

        @cache
        def pattern(queries: int, keys: int, causal: bool) -> float:
            if queries < keys:
                return self.attention(_seen(operated, tokens_of(Span.of(TokenLayout.text(1, keys))), queries))
            tokens = tokens_of(Span.of(TokenLayout.text(1, keys) if layout is None else layout))
            share = _seen(operated, tokens, tokens.length) / _pairs(tokens.length, tokens.length, True)
            return self.attention(share * _pairs(queries, keys, causal))

        return Instead(pattern if hasattr(module, "rule") else cost)


def _pairs(queries: int, keys: int, causal: bool) -> int:
    """Of the last queries of so many keys."""
    return queries * keys - (queries * (queries - 1) // 2 if causal else 0)


def _seen(operated: Operated, tokens: Tokens, last: int) -> float:
    """The pairs of the last queries that a pattern lets through, on average over the heads."""
    queries = tokens if last == tokens.length else tokens.take(slice(-last, None))
    return visible_pairs(operated.operator.lay(queries, tokens, operated.heads), operated.heads)


@torch.no_grad()
def _mixer(lm: CausalLM, index: int) -> Instead:
    """Of two tokens it is seen which operators it calls, at which widths; of a third, whether it remembers each."""
    mixer = lm.layers[index].self_attn.mixer
    weights = [m.weight for m in mixer.modules() if isinstance(m, (nn.Linear, FeatureMap, ShortConv))]

    def kept(tokens: int) -> int:
        layout = TokenLayout.text(1, tokens, device=weights[0].device)
        x = torch.zeros(1, tokens, lm.width, device=weights[0].device, dtype=weights[0].dtype)
        tables = lm.rotary(x, layout.position)[index] if mixer.rotary else None
        return sum(held.nbytes for held in mixer(x, layout, {}, tables=tables)[1].values())

    with recording() as calls:
        two = kept(2)
    each = kept(3) - two

    def inside(queries: int, keys: int, causal: bool) -> float:
        sizes = {"keys": keys, "causal": False} if each else {"keys": queries}
        found = sum(call.cost(replace(call.shape, queries=queries, **sizes)).operations for call in calls)
        return found * _pairs(queries, keys, causal) / (queries * keys) if each else found

    return Instead(inside, sum(w.numel() for w in weights), (two - 2 * each, each))
