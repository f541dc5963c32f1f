"""Heads with exponentials, and what is reckoned of cameras, are in float32, whatever the rest of the model runs in."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor, nn
from torch.func import functional_call

from gnomon.vlm.multiview.vectors import widen

_Given = ParamSpec("_Given")
_Found = TypeVar("_Found")


def precisely(head: nn.Module, *inputs: Tensor, **options: Any) -> Any:
    """head(*inputs, **options), with inputs and weights in float32 at least and without autocast."""
    widened = tuple(widen(x) for x in inputs)
    with torch.autocast(inputs[0].device.type, enabled=False):
        if all(p.dtype.itemsize >= 4 for p in head.parameters()):
            return head(*widened, **options)
        return functional_call(head, {name: widen(p) for name, p in head.named_parameters()}, widened, options)


def unmixed(function: Callable[_Given, _Found]) -> Callable[_Given, _Found]:
    """A function of tensors without autocast, which would make products of places in half precision."""

    @wraps(function)
    def run(*args: _Given.args, **options: _Given.kwargs) -> _Found:
        with torch.autocast(args[0].device.type, enabled=False):
            return function(*args, **options)

    return run
