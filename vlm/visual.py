"""Runs decoder layers as a VisualCompute says: rows of visual tokens that nothing asks for are not computed.

For each layer there is a stand-in that is called like it. Where nothing is to be spared, that is the layer itself;
where only a mask or heads differ, the layer with another mask or another attention function; else its parts by turns.
Rows without images do as ever.

Shapes: B rows, T tokens, S keys, Q text tokens, N visual tokens, H heads, K key heads, D head width, C width.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gnomon.vlm.compute.base import LayerCompute, VisualCompute
from gnomon.vlm.decoder import DecodeState, LayerRun, Span, View, attention_mask
from gnomon.vlm.layout import TokenLayout

Attending = Callable[[nn.Module, Callable[..., tuple[Tensor, None]]], AbstractContextManager[None]]
"""While it lasts, a layer's attention goes through the given function."""

_PARTS = {"input_layernorm", "self_attn", "post_attention_layernorm", "mlp"}
_PROJECTIONS = {"q_proj", "k_proj", "v_proj", "o_proj"}
_NEURONS = {"gate_proj", "up_proj", "down_proj", "act_fn"}


def runnable(compute: VisualCompute, layers: Sequence[nn.Module]) -> None:
    """A ValueError for a policy that these layers cannot be run with."""
    name = type(compute).__name__
    for index, layer in enumerate(layers):
        work, config = compute.layer(index), layer.self_attn.config
        children = [{child for child, _ in part.named_children()} for part in (layer, layer.self_attn, layer.mlp)]
        known = children[0] == _PARTS and children[1] >= _PROJECTIONS and children[2] == _NEURONS
        if not known and (not work.attend or work.ffn < 1):
            raise ValueError(
                f"{name} with {type(layer).__name__}, whose parts are not Llama's: what it spares cannot be left out; "
                "use another language model, such as a llama or qwen2"
            )
        if work.blind and getattr(config, "attn_logit_softcapping", None) is not None:
            raise ValueError(
                f"{name}: inactive heads with {config.model_type}, which caps attention; use no inactive heads"
            )
        if work.blind and not 0 <= min(work.blind) <= max(work.blind) < config.num_attention_heads:
            raise ValueError(
                f"{name}: inactive heads {list(work.blind)} of layer {index}, which has heads 0 to "
                f"{config.num_attention_heads - 1}; correct the list"
            )


class VisualLayers:
    """The layers of one prefill. source: (B,T,E) encoder features in their tokens' places, for a policy that reads."""

    def __init__(self, compute: VisualCompute, attending: Attending, source: Tensor | None = None) -> None:
        self.compute, self.attending, self.source = compute, attending, source
        self._sight: _Sight | None = None

    def later(self) -> BlindHeads:
        """What the tokens that follow the prefill need of it."""
        return BlindHeads(self.compute, self.attending)

    def stand_in(self, index: int, layer: nn.Module, view: View, past: Span | None, window: int | None) -> LayerRun:
        assert past is None, "images are read in the prefill, not afterwards"
        work = self.compute.layer(index)
        if self._sight is None or self._sight.view is not view:
            self._sight = _Sight(view, self.compute.pairs(view.layout))
        if self._sight.places.visual.numel() == 0 or (work == LayerCompute() and self._sight.pairs is None):
            return layer
        return _Spared(layer, work, self._sight, self._sight.mask(window), self.attending, partial(self._feed, index))

    def _feed(self, index: int, at: Tensor) -> Tensor | None:
        """(B,N,C) what visual tokens at these positions are in a layer, where they are fed anew."""
        return None if self.source is None else self.compute.feed(index, _take(self.source, at))


@dataclass(frozen=True, eq=False)
class _Spared:
    """A layer with all that a call needs besides hidden states: it may run again in the backward pass."""

    layer: nn.Module
    work: LayerCompute
    sight: _Sight
    mask: Tensor
    attending: Attending
    feed: Callable[[Tensor], Tensor | None]

    def __call__(self, hidden: Tensor, **given: Any) -> Tensor:
        layer, places = self.layer, self.sight.places
        if self.work.attend and self.work.ffn == 1:
            out = self._attend(layer, hidden, given)
            return out[0] if isinstance(out, tuple) else out
        flat = hidden.flatten(0, 1)
        if self.work.attend:
            flat = flat + self._attend(layer.self_attn, layer.input_layernorm(hidden), given)[0].flatten(0, 1)
        else:
            flat = _add(flat, places.text_flat, self._text_attention(hidden, given)[places.text_real])
        if self.work.ffn == 1:
            return (flat + layer.mlp(layer.post_attention_layernorm(flat))).view_as(hidden)
        flat = _add(flat, places.text_flat, layer.mlp(layer.post_attention_layernorm(flat[places.text_flat])))
        if self.work.ffn > 0:
            visual = layer.post_attention_layernorm(flat[places.visual_flat])
            flat = _add(flat, places.visual_flat, _first_neurons(layer.mlp, visual, self.work.ffn))
        return flat.view_as(hidden)

    def _attend(self, module: nn.Module, hidden: Tensor, given: dict[str, Any]) -> Any:
        """What the layer, or its attention alone, yields for all tokens."""
        if not self.work.blind:
            return module(hidden, **{**given, "attention_mask": self.sight.view.given(self.mask)})
        attend = partial(_blind, self.work.blind, self.sight.view.queries.visual, self.sight.places)
        with self.attending(self.layer, attend):
            return module(hidden, **{**given, "attention_mask": self.mask})

    def _text_attention(self, hidden: Tensor, given: dict[str, Any]) -> Tensor:
        """(B,Q,C) attention of the text; visual tokens come in as keys and values, by way of the cache."""
        places, attention, norm = self.sight.places, self.layer.self_attn, self.layer.input_layernorm
        fed = self.feed(places.visual)
        visual = _take(hidden, places.visual) if fed is None else fed.to(hidden.dtype)
        of_text, of_visual = (
            tuple(_take(table, at) for table in given["position_embeddings"]) for at in (places.text, places.visual)
        )
        keys, values = _keys_values(attention, norm(visual), of_visual)
        own = {
            "attention_mask": self.sight.view.given(_take(self.mask[:, 0], places.text)[:, None]),
            "position_ids": None,
            "position_embeddings": of_text,
            "past_key_values": _Joined(keys, values, places.joined, given["past_key_values"]),
        }
        return attention(norm(_take(hidden, places.text)), **own)[0]


class BlindHeads:
    """The layers of later tokens, which are text: inactive heads go on not to read visual values."""

    def __init__(self, compute: VisualCompute, attending: Attending) -> None:
        self.compute, self.attending = compute, attending

    def stand_in(self, index: int, layer: nn.Module, view: View, past: Span | None, window: int | None) -> LayerRun:
        blind = self.compute.layer(index).blind
        return partial(self._run, layer, blind, past.join(view.queries).visual) if blind else layer

    def _run(self, layer: nn.Module, blind: tuple[int, ...], keys: Tensor, hidden: Tensor, **given: Any) -> Tensor:
        with self.attending(layer, partial(_blind, blind, keys, None)):
            out = layer(hidden, **given)
        return out[0] if isinstance(out, tuple) else out


class _Sight:
    """Where visual tokens are in one view of the tokens, and whom they see; `pairs` as VisualCompute has them."""

    def __init__(self, view: View, pairs: Tensor | None) -> None:
        self.view, self.pairs, self.places = view, pairs, _Places.of(view.layout)
        self._masks: dict[int | None, Tensor] = {}

    def mask(self, window: int | None) -> Tensor:
        """(B,1,T,T) bool, with the policy's own pairs of visual tokens."""
        if window not in self._masks:
            span = self.view.queries
            mask = attention_mask(span, span, window, plain=False)
            if self.pairs is not None:
                both, near = span.visual[:, :, None] & span.visual[:, None], self.pairs
                if span.document is not None:
                    near = near & (span.document[:, :, None] == span.document[:, None])
                if window is not None:
                    near = near & (span.position[:, :, None] - span.position[:, None] < window)
                mask = torch.where(both[:, None], near[:, None], mask)
            self._masks[window] = mask
        return self._masks[window]


@dataclass(frozen=True)
class _Places:
    """Where text and visual tokens stand in their rows; what is short is padded, and `*_real` says with what.

    text (B,Q), visual (B,N)  positions; text_real (B,Q)  which are no padding
    text_flat, visual_flat    the real ones in the flattened batch
    joined (B,T)              each token's place in its row's text and visual tokens, one after the other
    rank (B,T)                each text token's number, Q for others
    """

    text: Tensor
    visual: Tensor
    text_real: Tensor
    text_flat: Tensor
    visual_flat: Tensor
    joined: Tensor
    rank: Tensor

    @classmethod
    def of(cls, layout: TokenLayout) -> _Places:
        seen = layout.is_cell
        said = layout.visible & ~seen
        (text, text_real), (visual, _) = _listed(said), _listed(seen)
        rank = torch.where(said, said.long().cumsum(1) - 1, text.shape[1])
        joined = torch.where(seen, text.shape[1] + seen.long().cumsum(1) - 1, rank)
        # nobody looks at padding: any key will do
        joined = joined.masked_fill(~layout.visible, 0)
        flat = [mask.flatten().nonzero()[:, 0] for mask in (said, seen)]
        return cls(text, visual, text_real, flat[0], flat[1], joined, rank)


def _listed(wanted: Tensor) -> tuple[Tensor, Tensor]:
    """(B,M) where the wanted positions of each row are, and which of these are real."""
    order = torch.argsort(~wanted, dim=1, stable=True)[:, : int(wanted.sum(1).max())]
    return order, wanted.gather(1, order)


def _take(values: Tensor, at: Tensor) -> Tensor:
    """(B,T,...) at positions (B,M) of each row."""
    return values[torch.arange(len(at), device=at.device)[:, None], at]


def _add(flat: Tensor, at: Tensor, more: Tensor) -> Tensor:
    return flat.index_add(0, at, more.to(flat.dtype))


class _Joined:
    """Between a layer's attention and its cache: puts visual keys and values in their places among the text's."""

    def __init__(self, keys: Tensor, values: Tensor, joined: Tensor, state: DecodeState | None) -> None:
        self.keys, self.values, self.joined, self.state = keys, values, joined, state

    def update(self, keys: Tensor, values: Tensor, layer_idx: int, cache_kwargs: dict | None = None):
        both = [torch.cat(pair, 2) for pair in ((keys, self.keys), (values, self.values))]
        keys, values = (_take(x.transpose(1, 2), self.joined).transpose(1, 2) for x in both)
        return (keys, values) if self.state is None else self.state.update(keys, values, layer_idx)


def _keys_values(attention: nn.Module, normed: Tensor, tables: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """(B,K,N,D) keys with rotary applied, and values, as the attention module makes them, without its queries."""
    heads = (*normed.shape[:2], -1, attention.head_dim)
    keys, values = attention.k_proj(normed).view(heads), attention.v_proj(normed).view(heads).transpose(1, 2)
    if hasattr(attention, "k_norm"):
        keys = attention.k_norm(keys)
    keys = keys.transpose(1, 2)
    # some layers of some architectures have no positions
    if getattr(attention, "use_rope", True):
        rotate = sys.modules[type(attention).__module__].apply_rotary_pos_emb
        _, keys = rotate(keys[:, :0], keys, *tables)
    return keys, values


def _first_neurons(mlp: nn.Module, x: Tensor, share: float) -> Tensor:
    """A gated feed-forward part with its first neurons alone."""
    count = round(share * mlp.down_proj.in_features)
    gate, up = (
        F.linear(x, part.weight[:count], None if part.bias is None else part.bias[:count])
        for part in (mlp.gate_proj, mlp.up_proj)
    )
    return F.linear(mlp.act_fn(gate) * up, mlp.down_proj.weight[:, :count], mlp.down_proj.bias)


def _blind(
    blind: Sequence[int],
    visual: Tensor,
    places: _Places | None,
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    **options: Any,
) -> tuple[Tensor, None]:
    """An attention function of which some heads read nothing at keys where `visual` (B,S), and answer text alone.

    places: of the queries, when there are visual ones among them.
    """
    attend = partial(F.scaled_dot_product_attention, dropout_p=dropout, scale=scaling)
    blind = sorted(blind)
    seeing = [head for head in range(query.shape[1]) if head not in blind]
    key, value = (x.repeat_interleave(query.shape[1] // x.shape[1], 1) for x in (key, value))
    text, text_mask = query[:, blind], mask
    if places is not None:
        text = _take(text.transpose(1, 2), places.text).transpose(1, 2)
        text_mask = _take(mask[:, 0], places.text)[:, None]
    unread = value[:, blind].masked_fill(visual[:, None, :, None], 0)
    answers = attend(text, key[:, blind], unread, attn_mask=text_mask)
    if places is not None:
        # one more row of nought is what all others get
        answers = _take(F.pad(answers, (0, 0, 0, 1)).transpose(1, 2), places.rank).transpose(1, 2)
    parts = [answers]
    if seeing:
        parts.append(attend(query[:, seeing], key[:, seeing], value[:, seeing], attn_mask=mask))
    order = torch.tensor([*blind, *seeing], device=query.device).argsort()
    return torch.cat(parts, 1)[:, order].transpose(1, 2).contiguous(), None
