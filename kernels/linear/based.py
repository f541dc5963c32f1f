"""BASED: linear attention with the second-order Taylor series of exp as its kernel.

Paper:   Simple linear attention language models balance the recall-throughput tradeoff. arXiv:2402.18668
Rule:    w_ij = 1 + t + t^2 / 2 with t = scale q_i k_j;  o_i = sum_j w_ij v_j / sum_j w_ij
Where:   any self-attention, noncausal cross-attention; keys about 16 wide, beside layers of a small softmax window
Differs: no epsilon: a weight is at least 1/2. The features keep one of x_a x_b and x_b x_a: 153 of 273 at a width of 16
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

import gnomon.kernels.linear.base as base
from gnomon.kernels.example import Example, Sizes, just_qkv
from gnomon.kernels.mask import Mask
from gnomon.kernels.op import Cost, Impl, Op, Result, Shape, State
from gnomon.kernels.typed import typed


@typed
def based(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    mask: Mask = None,
    scale: float | None = None,
    state: State | None = None,
    cu_seqlens: Tensor | tuple[Tensor, Tensor] | None = None,
    impl: str = "auto",
    block: int = base.CHUNK,
) -> Result:
    """q (B,Q,H,D), k (B,K,H,D), v (B,K,H,V) -> o (B,Q,H,V), state {"s": (B,H,1+D+D(D+1)/2,V+1)}, weights' sums last."""
    return OP.run(impl, q, k, v, mask=mask, scale=scale, state=state, cu_seqlens=cu_seqlens, options={"block": block})


def quadratic(
    q: Tensor, k: Tensor, v: Tensor, *, causal: bool, scale: float, state: State | None, block: int
) -> Result:
    """The specification: the matrix of weights, divided by the sums of its rows."""
    wide, dtype = torch.promote_types(q.dtype, torch.float32), q.dtype
    q, k, values = q.to(wide) * scale, k.to(wide), base.with_one(v.to(wide))
    t = torch.einsum("bqhd,bkhd->bhqk", q, k)
    weights = 1 + t + t**2 / 2
    if state is None:
        return base.divided(torch.einsum("bhqk,bkhv->bqhv", weights, values)).to(dtype), None
    sums = torch.einsum("bhqk,bkhv->bqhv", weights.tril(), values)
    sums = sums + torch.einsum("bqhf,bhfv->bqhv", taylor(q), state["s"])
    return base.divided(sums).to(dtype), {"s": state["s"] + torch.einsum("bkhf,bkhv->bhfv", taylor(k), values)}


def taylor(x: Tensor, dim: int = -1) -> Tensor:
    """Features whose products are 1 + q k + (q k)^2 / 2."""
    a, b = torch.triu_indices(x.shape[dim], x.shape[dim], device=x.device)
    weight = torch.where(a == b, x.new_tensor(0.5**0.5), 1).view(-1, *[1] * (-1 - dim))
    pairs = x.index_select(dim, a) * x.index_select(dim, b) * weight
    return torch.cat([torch.ones_like(x.narrow(dim, 0, 1)), x, pairs], dim)


def by_features(core: Callable[..., Result]) -> Callable[..., Result]:
    def call(q: Tensor, k: Tensor, v: Tensor, *, causal: bool, scale: float, state: State | None, block: int) -> Result:
        wide = torch.promote_types(q.dtype, torch.float32)
        return base.normalized(core, taylor(q.to(wide) * scale), taylor(k.to(wide)), v, state=state, block=block)

    return call


def chunk(q: Tensor, k: Tensor, v: Tensor, *, causal: bool, scale: float, state: State | None, block: int) -> Result:
    """Block after block: inside of it weights as they are, before it features, which only ever exist for one block."""
    wide, dtype = torch.promote_types(q.dtype, torch.float32), q.dtype
    # channels before tokens: to pick one is then to copy a row
    queries, keys = ([x.permute(0, 2, 3, 1) for x in y.split(block, 1)] for y in (q.to(wide) * scale, k.to(wide)))
    values = [x.transpose(1, 2) for x in base.with_one(v.to(wide)).split(block, 1)]
    if state is None:
        s = sum(taylor(key, -2) @ value for key, value in zip(keys, values))
        sums = [taylor(query, -2).mT @ s for query in queries]
    else:
        s, sums = state["s"], []
        for query, key, value in zip(queries, keys, values):
            t = query.mT @ key
            sums.append((1 + t + t**2 / 2).tril() @ value + taylor(query, -2).mT @ s)
            s = s + taylor(key, -2) @ value
        state = {"s": s}
    return base.divided(torch.cat(sums, 2).transpose(1, 2)).to(dtype), state


def features(width: int) -> int:
    return 1 + width + width * (width + 1) // 2


def inside(shape: Shape) -> Shape:
    """Of the recurrence of features."""
    width = features(shape.width)
    return replace(shape, width=width, value_width=shape.value_width + 1, dtype=shape.accumulate)


def start(shape: Shape) -> State:
    return base.start(inside(shape))


def cost(shape: Shape) -> Cost:
    out = shape.value_width + 1
    near = min(base.CHUNK, shape.queries) if shape.causal else 0
    operations = 4 * features(shape.width) * out + near * (shape.width + out)
    return Cost(shape.batch * shape.heads * shape.queries * operations, base.cost()(shape).bytes)


def long(sizes: Sizes) -> Example:
    """More than one chunk; weights far from those of exp."""
    return Example(q=9 * sizes.randn(sizes.batch, sizes.queries, sizes.heads, sizes.width), options={"block": 4})


OP = Op(
    name="based",
    impls={"reference": Impl(quadratic), **base.impls(by_features, inside=inside), "chunk": Impl(chunk)},
    auto=base.AUTO,
    patterns=frozenset({"NS", "CS", "NC"}),
    state=start,
    handmade=frozenset({"triton"}),
    cost=cost,
    # I is 1, H is 1/2
    cascade="""
        N         = sum(I[m])
        U[f]      = sum(V[f,m])
        Z[e]      = sum(K[e,m])
        S[e,f]    = K[e,m] * V[f,m]
        Z2[e,g]   = K[e,m] * K[g,m]
        S2[e,g,f] = K[e,m] * K[g,m] * V[f,m]
        Y[f,p]    = U[f] + Q[e,p] * S[e,f] + H * Q[e,p] * Q[g,p] * S2[e,g,f]
        C[p]      = N + Q[e,p] * Z[e] + H * Q[e,p] * Q[g,p] * Z2[e,g]
        O[f,p]    = Y[f,p] / C[p]
    """,
    example=just_qkv,
    variants={"long": long},
)
