"""Taps: what reducers ask of an encoder beyond its features, from the queries and keys of one attention block.

The block is the one whose output the features are. Its queries and keys are read on their way into the fused attention
kernel, after whatever norm or rotation the model gives them: nothing is computed twice, no kernel changes, and an
attention that takes another way is refused instead of guessed at.

Shapes: I images, N cells of each, C feature width.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from gnomon.vlm.scores import Projected, columns, rows

NAMES = frozenset({"saliency", "keys", "wide_saliency", "wide_keys"})
"""Fields of Features that are made here."""


class _Watch(TorchFunctionMode):
    """Notes the inputs of every call of the fused attention kernel."""

    def __init__(self, seen: list[Projected | None]) -> None:
        self.seen = seen

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            self.seen.append(_projected(*args, **kwargs))
        return func(*args, **kwargs)


def _projected(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Projected | None:
    """A call of the kernel as scores.py takes it; None for one that does more than multiply queries and keys."""
    if attn_mask is not None or is_causal or query.dim() != 4 or query.shape != key.shape:
        return None
    return Projected(query.detach(), key.detach(), query.shape[3] ** -0.5 if scale is None else scale)


@contextmanager
def watched(block: nn.Module) -> Iterator[list[Projected | None]]:
    """While it lasts, whenever `block` runs, the inputs of its attention are added to the list."""
    seen: list[Projected | None] = []
    watch = _Watch(seen)

    def enter(*_: Any) -> None:
        watch.__enter__()

    def leave(*_: Any) -> None:
        watch.__exit__(None, None, None)

    hooks = [block.register_forward_pre_hook(enter), block.register_forward_hook(leave, always_call=True)]
    try:
        # compiled code need not look at hooks: meanwhile, blocks run as they are written
        with torch.compiler.set_stance("force_eager"):
            yield seen
    finally:
        for hook in hooks:
            hook.remove()


def has_attention(model: nn.Module) -> bool:
    """Whether any module mixes tokens by queries and keys, of whatever kind."""
    return any(hasattr(module, "num_heads") or hasattr(module, "qkv") for module in model.modules())


@torch.no_grad()
def read(
    seen: list[Projected | None], want: frozenset[str], *, cells: int, prefix: int, cls: bool
) -> dict[str, Tensor]:
    """The wanted of NAMES, of images of `cells` tokens behind `prefix` others, of which `cls` says if one is the class.

    Saliency is the attention of the class token, mean over heads; without one, the attention that a cell receives, mean
    over heads and queries. Other tokens before the cells, such as registers, take their share and are left out.
    """
    # windows, biases and several attentions in a block look otherwise
    if len(seen) != 1 or seen[0] is None or seen[0].queries.shape[2] != prefix + cells:
        raise unreadable()
    one = seen[0]
    found = {}
    if "keys" in want:
        found["keys"] = one.keys[:, :, -cells:].float().mean(1)
    if "wide_keys" in want:
        found["wide_keys"] = one.keys[:, :, -cells:].transpose(1, 2).flatten(2)
    if "saliency" in want:
        found["saliency"] = _saliency(one, cells, cls)
    if "wide_saliency" in want:
        found["wide_saliency"] = _saliency(one.one_head(), cells, cls)
    return found


def _saliency(seen: Projected, cells: int, cls: bool) -> Tensor:
    if cls:
        first = torch.zeros(len(seen.queries), 1, dtype=torch.long, device=seen.queries.device)
        return rows(seen, first)[:, :, 0, -cells:].mean(1)
    return columns(seen)[..., -cells:].mean(1) / seen.queries.shape[2]


@torch.no_grad()
def substitute(tokens: Tensor, want: frozenset[str]) -> dict[str, Tensor]:
    """The wanted of NAMES for an encoder without any attention, from its features (I,N,C), without parameters.

    Keys are the features, each channel with mean 0 and deviation 1 over the image. Saliency is the attention that a
    cell receives when the same are the queries, in one head, mean over queries. The wide ones are equal to these.
    """
    values = tokens.float()
    keys = (values - values.mean(1, keepdim=True)) / (values.std(1, correction=0, keepdim=True) + 1e-6)
    found = {"keys": keys, "wide_keys": keys}
    if want & {"saliency", "wide_saliency"}:
        seen = Projected(keys[:, None], keys[:, None], keys.shape[2] ** -0.5)
        found["saliency"] = found["wide_saliency"] = _saliency(seen, keys.shape[1], cls=False)
    return {name: found[name] for name in want & NAMES}


def unreadable() -> ValueError:
    return ValueError(
        "this encoder's attention cannot be read: its last block does not call the fused kernel once, over all tokens "
        "and without a bias; use a plain vision transformer, an encoder without attention, or a reducer that needs no "
        "scores"
    )
