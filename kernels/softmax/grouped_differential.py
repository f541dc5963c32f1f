"""Grouped differential: many signal maps minus few noise maps.

Paper:   Grouped Differential Attention. arXiv:2510.06949
Rule:    o = softmax(scale q1 k1^T) [v1, v2] - amount softmax(scale q2 k2^T) [v1, v2];
         `ratio` signal heads share one noise head
Where:   any self- or cross-attention of a model that was trained or grown for it
Differs: the norm over the 2V channels of a head, and its factor 1 - initial(layer), are the layer's; ratio=1 is the
         Differential Transformer; in half precision all but the reference round each map before they subtract
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from gnomon.kernels import attend
from gnomon.kernels.checks import refuse
from gnomon.kernels.example import Example, Sizes
from gnomon.kernels.mask import Bound, Mask
from gnomon.kernels.moments import widen
from gnomon.kernels.op import Cost, Impl, Op, Result, Shape, State
from gnomon.kernels.softmax.base import remember
from gnomon.kernels.typed import typed


@typed
def grouped_differential(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    amount: Tensor | float,
    ratio: int = 1,
    mask: Mask = None,
    scale: float | None = None,
    state: State | None = None,
    cu_seqlens: Tensor | tuple[Tensor, Tensor] | None = None,
    impl: str = "auto",
) -> Result:
    """q (B,Q,n(ratio+1),D), k (B,K,2g,D), v (B,K,2g,V), amount () -> o (B,Q,n ratio,2V) and the keys and values so far.

    Heads of q come in n groups of `ratio` signal heads and a noise head; those of k and v are signal, noise, and so on.
    The mask is one for all heads: the two maps have different numbers of them.
    """
    check(q, k, v, ratio)
    if isinstance(amount, Tensor) and amount.numel() != 1:
        raise refuse(OP.name, f"amount has shape {tuple(amount.shape)}", "give one number for all heads")
    k, v, state = remember("grouped_differential", k, v, state, cu_seqlens)
    groups = q.unflatten(2, (-1, ratio + 1))
    q1, q2 = groups[:, :, :, :ratio].flatten(2, 3), groups[:, :, :, ratio]
    both = torch.cat([v[:, :, 0::2], v[:, :, 1::2]], -1)
    signal, _ = ONE(impl, q1, k[:, :, 0::2], both, mask=mask, scale=scale, cu_seqlens=cu_seqlens)
    noise, _ = ONE(impl, q2, k[:, :, 1::2], both, mask=mask, scale=scale, cu_seqlens=cu_seqlens)
    signal, noise = widen(signal, noise)
    return (signal - amount * noise.repeat_interleave(ratio, 2)).to(q.dtype), state


def check(q: Tensor, k: Tensor, v: Tensor, ratio: int) -> None:
    for name, x in (("q", q), ("k", k), ("v", v)):
        if x.ndim != 4:
            raise refuse(OP.name, f"{name} has shape {tuple(x.shape)}", "give (batch, tokens, heads, width)")
    if ratio < 1 or q.shape[2] % (ratio + 1):
        raise refuse(OP.name, f"{q.shape[2]} query heads at ratio {ratio}", "give n (ratio + 1) heads")
    noise = q.shape[2] // (ratio + 1)
    for name, x in (("k", k), ("v", v)):
        if x.shape[2] % 2 or noise % (x.shape[2] // 2):
            raise refuse(OP.name, f"{name} has {x.shape[2]} heads", f"give twice a divisor of the {noise} noise heads")


def unrounded(q: Tensor, k: Tensor, v: Tensor, *, mask: Bound, scale: float, state: State | None = None) -> Result:
    """The specification: each map in at least float32, and left in it."""
    return attend.reference(*widen(q, k, v), mask=mask, scale=scale)


def initial(layer: int) -> float:
    """Of the amount, by depth counted from 0."""
    return 0.8 - 0.6 * math.exp(-0.3 * layer)


def learned(q1: Tensor, k1: Tensor, q2: Tensor, k2: Tensor, *, layer: int) -> Tensor:
    """The amount from four learned vectors (d,), in float32."""
    return (q1.float() @ k1.float()).exp() - (q2.float() @ k2.float()).exp() + initial(layer)


def cost(shape: Shape) -> Cost:
    """The values are twice as wide."""
    return attend.cost(replace(shape, value_width=2 * shape.value_width))


def example(sizes: Sizes) -> Example:
    return Example(parameters={"amount": sizes.rand(1)[0]})


def unequal(sizes: Sizes) -> Example:
    """Three signal heads share one noise head."""
    k, v = (sizes.randn(sizes.batch, sizes.keys, 2, width) for width in (sizes.width, sizes.value_width))
    return Example(k=k, v=v, parameters={"amount": sizes.rand(1)[0]}, options={"ratio": 3})


OP = Op(
    name="grouped_differential",
    impls={**attend.IMPLS, "reference": Impl(unrounded, packed=True)},
    auto=attend.AUTO,
    patterns=frozenset({"NS", "CS", "NC", "CC"}),
    masks=True,
    cache=True,
    cost=cost,
    cascade=attend.CASCADE,
    example=example,
    variants={"unequal": unequal},
)

ONE = replace(OP, cost=attend.cost).run
"""One of the two attentions; it is told of its values at their width."""
