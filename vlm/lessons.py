"""Attention transfer: the errors of layers that learn to answer as softmax attention does, and how they count.

An error is tied to the answer of its layer: whoever goes back through any loss of the model comes by it, and layers
that are sharded or recomputed see it as a gradient like all others. The loss's own gradient ends where such a layer
begins; what lies below is gone through for the errors alone, and computes nothing else.

Shapes: B rows, T tokens, C width.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


@dataclass
class Lessons:
    """weight: of each layer's error in the gradient. errors: by the layer's number, of the batch read last."""

    weight: float = 1.0
    errors: dict[int, Tensor] = field(default_factory=dict)

    def correct(self, layer: int, answer: Tensor, error: Tensor) -> Tensor:
        """The layer's answer, to which its error is tied."""
        self.errors[layer] = error.detach()
        return _Tie.apply(answer, error, self.weight)


def sample_mean(values: Tensor, visible: Tensor, document: Tensor | None) -> Tensor:
    """Of (B,T) values, 0 at padding: the mean over samples, whatever their rows, of the means over their tokens."""
    begins = torch.ones_like(visible)
    begins[:, 1:] = False if document is None else document[:, 1:] != document[:, :-1]
    sample = (begins.flatten().cumsum(0) - 1).view_as(begins)
    lengths = values.new_zeros(values.numel()).scatter_add(0, sample.flatten(), visible.flatten().to(values.dtype))
    return (values / lengths[sample].clamp(min=1)).sum() / (lengths > 0).sum().clamp(min=1)


def alone(hidden: Tensor) -> Tensor:
    """(B,T,C) as it is; going back ends here, but for what is tied below."""
    return _Alone.apply(hidden)


class _Tie(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, answer: Tensor, error: Tensor, weight: float) -> Tensor:
        ctx.weight, ctx.like = weight, (error.device, error.dtype)
        return answer.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        device, dtype = ctx.like
        return gradient, torch.full((), ctx.weight, device=device, dtype=dtype), None


class _Alone(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor) -> Tensor:
        return hidden.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> None:
        # not zeros: what gets none computes nothing
        return None
