"""Arithmetic of a decoder by its shape: operations of prefill and decoding, and bytes of its caches.

Two operations (FLOPs) per multiply-add (MAC). Matrix products only, of all tokens. Papers count attention as the full
square of queries and keys; with `causal` only pairs count in which the query may look at the key, which is what causal
kernels compute. Encoder and connector are not in it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from gnomon.vlm.hf import CausalLM


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

    @classmethod
    def of(cls, lm: CausalLM) -> Decoder:
        config = lm.model.config
        return cls(
            layers=config.num_hidden_layers,
            width=config.hidden_size,
            inner=config.intermediate_size,
            heads=config.num_attention_heads,
            key_heads=config.num_key_value_heads,
            head_width=getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads,
            vocabulary=config.vocab_size,
        )

    def layer(self, tokens: int, pairs: int) -> int:
        """FLOPs of one layer for so many tokens, and pairs of a query and a key."""
        projections = 2 * (self.heads + self.key_heads) * self.head_width * self.width
        attention = 2 * self.heads * self.head_width
        return 2 * (tokens * (projections + 3 * self.width * self.inner) + pairs * attention)

    def prefill(self, lengths: Sequence[int], *, causal: bool = False) -> int:
        """FLOPs of a row whose layers get so many tokens each, without the head."""
        return sum(self.layer(n, n * (n + 1) // 2 if causal else n * n) for n in lengths)

    def step(self, lengths: Sequence[int]) -> int:
        """FLOPs of one more token, the head included; `lengths`: the keys it sees in each layer, its own included."""
        return sum(self.layer(1, keys) for keys in lengths) + 2 * self.width * self.vocabulary

    def cache_bytes(self, lengths: Sequence[int], item: int) -> int:
        """Keys and values of a row whose layers keep so many tokens; `item`: bytes of a number."""
        return 2 * self.key_heads * self.head_width * item * sum(lengths)
