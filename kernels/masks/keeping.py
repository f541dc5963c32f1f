"""What is kept between calls: tensors that any later call may use, whatever the call was that made them.

A tensor of inference mode cannot be saved for a backward pass, and one of a tracing mode (FakeTensorMode) holds no
numbers: what is kept is made outside of inference mode, and under a tracing mode nothing is kept, or taken from there.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from functools import lru_cache, wraps
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor

_P, _R = ParamSpec("_P"), TypeVar("_R")


def once(cache: dict[Hashable, Any], key: Hashable, make: Callable[[], _R]) -> _R:
    """What is made for a key is kept in the cache."""
    if _tracing():
        return make()
    if key not in cache:
        with torch.inference_mode(False):
            cache[key] = make()
    return cache[key]


def remembered(make: Callable[_P, _R]) -> Callable[_P, _R]:
    """The last 32 results are kept."""

    @lru_cache(maxsize=32)
    def known(*given: _P.args, **named: _P.kwargs) -> _R:
        with torch.inference_mode(False):
            return make(*given, **named)

    @wraps(make)
    def find(*given: _P.args, **named: _P.kwargs) -> _R:
        return (make if _tracing() else known)(*given, **named)

    return find


def _tracing() -> bool:
    """Whether new tensors are of a kind of their own."""
    return type(torch.empty(0, device="cpu")) is not Tensor
