"""Hedgehog: linear attention whose features are softmaxes over channels, trained to mimic softmax attention.

Paper:   The Hedgehog & the Porcupine: Expressive Linear Attentions with Softmax Mimicry. arXiv:2402.04347
Rule:    phi(x) = (softmax(x), softmax(-x));  o_i = sum_j phi(q_i) phi(k_j) v_j / sum_j phi(q_i) phi(k_j)
Where:   any self-attention, noncausal cross-attention; q and k come through the learned maps (W x + b, after RoPE)
Differs: features are at least 1e-12 instead of an epsilon below the line; joint=True: one softmax over (2x, -2x)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

import gnomon.kernels.linear.base as base
from gnomon.kernels.example import Example, Sizes
from gnomon.kernels.mask import Mask
from gnomon.kernels.op import Cost, Impl, Op, Result, Shape, State
from gnomon.kernels.typed import typed


@typed
def hedgehog(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    joint: bool = False,
    mask: Mask = None,
    scale: float | None = None,
    state: State | None = None,
    cu_seqlens: Tensor | tuple[Tensor, Tensor] | None = None,
    impl: str = "auto",
    block: int = base.CHUNK,
) -> Result:
    """q (B,Q,H,F), k (B,K,H,F), v (B,K,H,V) -> o (B,Q,H,V), state {"s": (B,H,2F,V+1)}, weights' sums last.

    The scale has no effect: it is above and below the line.
    """
    options = {"joint": joint, "block": block}
    return OP.run(impl, q, k, v, mask=mask, scale=scale, state=state, cu_seqlens=cu_seqlens, options=options)


def quadratic(
    q: Tensor, k: Tensor, v: Tensor, *, causal: bool, scale: float, state: State | None, joint: bool, block: int
) -> Result:
    """The specification: the matrix of weights, divided by the sums of its rows."""
    dtype, q, k = q.dtype, base.two_softmaxes(q, joint), base.two_softmaxes(k, joint)
    values, weights = base.with_one(v.to(q.dtype)), torch.einsum("bqhf,bkhf->bhqk", q, k)
    if state is None:
        return base.divided(torch.einsum("bhqk,bkhv->bqhv", weights, values)).to(dtype), None
    sums = torch.einsum("bhqk,bkhv->bqhv", weights.tril(), values) + torch.einsum("bqhf,bhfv->bqhv", q, state["s"])
    return base.divided(sums).to(dtype), {"s": state["s"] + torch.einsum("bkhf,bkhv->bhfv", k, values)}


def by_features(core: Callable[..., Result]) -> Callable[..., Result]:
    def call(
        q: Tensor, k: Tensor, v: Tensor, *, causal: bool, scale: float, state: State | None, joint: bool, block: int
    ) -> Result:
        q, k = base.two_softmaxes(q, joint), base.two_softmaxes(k, joint)
        return base.normalized(core, q, k, v, state=state, block=block)

    return call


def inside(shape: Shape) -> Shape:
    """Of the recurrence of features."""
    return replace(shape, width=2 * shape.width, value_width=shape.value_width + 1, dtype=shape.accumulate)


def start(shape: Shape) -> State:
    return base.start(inside(shape))


def cost(shape: Shape) -> Cost:
    through = base.cost()(replace(shape, width=2 * shape.width, value_width=shape.value_width + 1))
    mapped = 2 * shape.width * shape.batch * shape.heads * (shape.queries + shape.keys)
    return Cost(through.operations, base.cost()(shape).bytes, mapped)


def halves(sizes: Sizes) -> Example:
    return Example(options={"block": 4})


def joint(sizes: Sizes) -> Example:
    return Example(options={"joint": True})


OP = Op(
    name="hedgehog",
    impls={"reference": Impl(quadratic), **base.impls(by_features, inside=inside)},
    auto=base.AUTO,
    patterns=frozenset({"NS", "CS", "NC"}),
    state=start,
    handmade=frozenset({"triton"}),
    cost=cost,
    # D is 1 and -1, FQ what becomes of the queries as F of the keys
    cascade="""
        X[h,e,m] = D[h] * K[e,m]
        M[h,m]   = max(X[h,e,m])
        E[h,e,m] = exp(X[h,e,m] - M[h,m])
        B[h,m]   = sum(E[h,e,m])
        F[h,e,m] = E[h,e,m] / B[h,m]
        S[h,e,f] = F[h,e,m] * V[f,m]
        Z[h,e]   = sum(F[h,e,m])
        Y[f,p]   = FQ[h,e,p] * S[h,e,f]
        C[p]     = FQ[h,e,p] * Z[h,e]
        O[f,p]   = Y[f,p] / C[p]
    """,
    example=halves,
    variants={"joint": joint},
)
