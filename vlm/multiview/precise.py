"""Heads with exponentials run in float32, whatever the rest of the model runs in."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from gnomon.vlm.multiview.vectors import widen


def precisely(head: nn.Module, *inputs: Tensor, **options: Any) -> Any:
    """head(*inputs, **options), with inputs and weights in float32 at least and without autocast."""
    widened = tuple(widen(x) for x in inputs)
    with torch.autocast(inputs[0].device.type, enabled=False):
        if all(p.dtype.itemsize >= 4 for p in head.parameters()):
            return head(*widened, **options)
        return functional_call(head, {name: widen(p) for name, p in head.named_parameters()}, widened, options)
