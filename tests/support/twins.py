"""Kernels beside their references. Interpreted, the arithmetic is float64; on a GPU float32."""

import os
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE, EXACT, TOLERANCE = ("cpu", torch.float64, 1e-11) if INTERPRETED else ("cuda", torch.float32, 1e-4)


def tensors(*shapes: tuple[int, ...], dtype: torch.dtype = EXACT) -> list[Tensor]:
    torch.manual_seed(0)
    return [torch.randn(s, dtype=torch.float64).to(DEVICE, dtype).requires_grad_() for s in shapes]


def agree(
    ours: Callable[..., Tensor], theirs: Callable[..., Tensor], inputs: Sequence[Tensor], tolerance: float = TOLERANCE
) -> None:
    """Values and gradients of two functions of the same tensors; theirs is computed in float64."""
    exact = [x.detach().double().requires_grad_() for x in inputs]
    weight, results = None, []
    for function, given in ((ours, inputs), (theirs, exact)):
        o = function(*given)
        weight = torch.randn(o.shape, dtype=torch.float64).to(DEVICE) if weight is None else weight
        results.append([o, *torch.autograd.grad((o * weight.to(o.dtype)).sum(), given)])
    for name, a, b in zip(["o", *(f"gradient {n}" for n in range(len(inputs)))], *results):
        difference = float(((a.double() - b).abs().max() / b.abs().max().clamp(min=1e-3)).detach())
        assert difference <= tolerance, f"{name}: off by {difference}"
