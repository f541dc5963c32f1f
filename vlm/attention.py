"""Operators of kernels/ in any transformers model, through its public registry of attention functions.

`register("power", {"block": 64})` returns a name for `attn_implementation`. Attention and mask function are registered
together: without the latter, transformers leaves the mask out, and a decoder sees the future. The mask is a dense bool
tensor, as for sdpa; a pattern is joined with it. Models of transformers know no grids: patterns on a grid are for
encoders, whose tokens are the `grid` that the options then name.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from gnomon.kernels.mask import CAUSAL, Bound
from gnomon.kernels.masks.tokens import Tokens
from gnomon.kernels.softmax.exact import exact
from gnomon.vlm.operators import Operator, check_causal
from gnomon.vlm.scores import Projected

PREFIX = "gnomon_"

_ROUTED = "gnomon_routed"


def register(
    name: str = "exact",
    options: Mapping[str, Any] | None = None,
    *,
    grid: tuple[int, ...] | None = None,
    as_name: str | None = None,
) -> str:
    """Make an operator known to transformers; returns what to give as attn_implementation: gnomon_NAME, or `as_name`.

    What a name stands for is the same everywhere in the process: operators with two sets of options need two names.
    grid: of an encoder's tokens, in raster order behind its class and register tokens.
    """
    operator = Operator(name, options or {})
    if operator.on_grid and grid is None:
        raise ValueError(f"operator {name!r} wants a grid, which transformers does not tell; give grid=(rows, columns)")
    known = PREFIX + name if as_name is None else as_name
    AttentionInterface.register(known, partial(_attend, operator, grid))
    AttentionMaskInterface.register(known, sdpa_mask)
    return known


def provide(name: str) -> None:
    """If this is a name of ours that has not been registered yet: register it, with the operator's default options."""
    if name.startswith(PREFIX) and name not in AttentionInterface().valid_keys():
        register(name.removeprefix(PREFIX))


class Enough(Exception):
    """Queries and keys are known, the rest of the attention is not wanted."""


@contextmanager
def watched(layer: nn.Module, see: Callable[[nn.Module, Projected], object], *, run: bool = True) -> Iterator[None]:
    """Attention goes by way of us, to the same kernel as ever; of all layers that run and share the config.

    run: whether attention is computed; else Enough is raised once queries and keys are known.
    """
    attention = layer.self_attn
    eager = sys.modules[type(attention).__module__].eager_attention_forward
    kernel = ALL_ATTENTION_FUNCTIONS.get_interface(attention.config._attn_implementation, eager)

    def watch(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **options: Any):
        scale = options.get("scaling")
        scale = query.shape[-1] ** -0.5 if scale is None else scale
        see(module, Projected(query.detach(), key.detach(), scale, options.get("softcap")))
        if not run:
            raise Enough
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


def _attend(
    operator: Operator,
    grid: tuple[int, ...] | None,
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    is_causal: bool | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    position_bias: Tensor | None = None,
    **unused: Any,
) -> tuple[Tensor, None]:
    """As transformers calls it: (B,H,T,D) in, (B,T,H,D) out."""
    unable = {"dropout": dropout or None, "softcap": softcap, "s_aux": s_aux, "position_bias": position_bias}
    for what, given in unable.items():
        if given is not None:
            raise ValueError(f"operator {operator.name!r} knows no {what}; use sdpa or eager for this model")
    if mask is not None and mask.dtype != torch.bool:
        raise ValueError(f"operator {operator.name!r} got a mask of {mask.dtype} to add; give a bool mask, or none")
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    q, k, v = (x.transpose(1, 2) for x in (query, key, value))
    if mask is None and causal and q.shape[1] > 1:
        # a cache of fixed size has room behind the last token
        k, v = k[:, : q.shape[1]], v[:, : q.shape[1]]
    plain = operator.name == "exact" or (causal and operator.only_training and not module.training)
    if plain:
        order = CAUSAL if mask is None and causal and q.shape[1] > 1 else mask
        return exact(q, k, v, mask=order, scale=scaling)[0], None
    if not causal:
        if mask is not None:
            raise ValueError(f"operator {operator.name!r} in an encoder with a mask; give images of one size, unpadded")
        return operator.everything(q, k, v, scale=scaling, grid=grid or (), prefix=q.shape[1] - prod(grid or ())), None
    check_causal(operator)
    if operator.on_grid or sliding_window is not None:
        what = "a sliding window" if sliding_window is not None else "text and no grid"
        raise ValueError(f"operator {operator.name!r} in a decoder with {what}; use gnomon_exact, or a CausalLM")
    return operator.causal(q, k, v, bound=_bound(operator, mask, q, k), scale=scaling), None


def _bound(operator: Operator, mask: Tensor | None, q: Tensor, k: Tensor) -> Bound:
    """The operator's rule on the tokens behind a dense mask: causal order, and keys that nobody sees as padding."""
    count, total = q.shape[1], k.shape[1]
    if mask is None:
        keys = Tokens.line(total, device=k.device)
        return operator.lay(keys if count == total else keys.take(slice(-count, None)), keys, q.shape[2])
    seen = mask[:, 0]
    valid = seen.any(1)
    keys = Tokens.padded(valid)
    index, number = (torch.arange(n, device=k.device) for n in (total, count))
    # a token sees itself, and nothing behind it: the last key that each sees says which keys the queries are. In a
    # cache of fixed size these are not the last ones: behind them is room that nobody has filled yet, padding as well
    last = torch.where(seen, index, -1).amax(-1)
    places = number + (last - number).amax().clamp(0, total - count)
    if not torch.equal(valid[:, None] & (index <= places[:, None]), seen):
        raise ValueError(f"operator {operator.name!r} got a mask that is more than causal order and padding; use sdpa")
    if count == total:
        return operator.lay(keys, keys, q.shape[2])
    places = places.repeat(len(seen), 1)
    # a row whose queries are all padding must hold its sequence all the same: one of them stands for its last token
    lost = valid.any(1) & ~valid.gather(1, places).any(1)
    places[:, 0] = torch.where(lost, last[:, 0], places[:, 0])
    queries = Tokens({name: field.gather(1, places) for name, field in keys.fields.items()})
    return operator.lay(queries, keys, q.shape[2])
