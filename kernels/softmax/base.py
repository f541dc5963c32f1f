"""What operators over softmax attention share: the growing cache, and an epilogue on every implementation of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from gnomon.kernels import attend
from gnomon.kernels.checks import check_cache, refuse
from gnomon.kernels.op import Impl, Result, State


def remember(
    op: str, k: Tensor, v: Tensor, state: State | None, cu_seqlens: Tensor | tuple[Tensor, Tensor] | None
) -> tuple[Tensor, Tensor, State | None]:
    """Keys and values with those of earlier calls before them, and the state to return."""
    if state is not None:
        if cu_seqlens is not None:
            raise refuse(op, "a state beside cu_seqlens", "continue the sequences one by one")
        check_cache(op, state, {"k": k, "v": v})
        k, v = torch.cat([state["k"], k], 1), torch.cat([state["v"], v], 1)
    return k, v, None if cu_seqlens is not None else {"k": k, "v": v}


def over_attention(method: Callable[..., Result]) -> dict[str, Impl]:
    """A method, called with a softmax attention first, once per implementation of that."""
    return {name: replace(impl, call=partial(method, impl.call)) for name, impl in attend.IMPLS.items()}
