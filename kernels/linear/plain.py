"""Plain: linear attention without normalisation, gates or decay.

Paper:   Transformers are RNNs: Fast Autoregressive Transformers with Linear Attention. arXiv:2006.16236
Rule:    S_t = S_{t-1} + k_t^T v_t;  o_t = scale q_t S_t (causal);  o_i = scale q_i sum_j k_j^T v_j (noncausal)
Where:   any self-attention, noncausal cross-attention; q and k come feature-mapped
Differs: no denominator and no feature map of its own: both belong to the caller
"""

from __future__ import annotations

import torch
from torch import Tensor

import gnomon.kernels.linear.base as base
from gnomon.kernels.example import just_qkv
from gnomon.kernels.mask import Mask
from gnomon.kernels.op import Cost, Impl, Op, Result, Shape, State
from gnomon.kernels.typed import typed


@typed
def plain(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    mask: Mask = None,
    scale: float | None = None,
    state: State | None = None,
    cu_seqlens: Tensor | None = None,
    impl: str = "auto",
    block: int = 64,
) -> Result:
    """q (B,T,H,D), k (B,T,Hk,D), v (B,T,Hv,V) -> o (B,T,H,V) and, with mask=CAUSAL, the state {"s": (B,H,D,V)}."""
    return OP.run(impl, q, k, v, mask=mask, scale=scale, state=state, cu_seqlens=cu_seqlens, options={"block": block})


def quadratic(
    q: Tensor, k: Tensor, v: Tensor, *, causal: bool, scale: float, state: State | None, block: int
) -> Result:
    """The specification: the matrix of products, with its upper half dropped."""
    wide, dtype = torch.promote_types(q.dtype, torch.float32), q.dtype
    q, k, v = q.to(wide) * scale, k.to(wide), v.to(wide)
    if state is None:
        return torch.einsum("bqhd,bkhd,bkhv->bqhv", q, k, v).to(dtype), None
    scores = torch.einsum("bqhd,bkhd->bhqk", q, k).tril()
    o = torch.einsum("bhqk,bkhv->bqhv", scores, v) + torch.einsum("bqhd,bhdv->bqhv", q, state["s"])
    return o.to(dtype), {"s": state["s"] + torch.einsum("bkhd,bkhv->bhdv", k, v)}


def recurrent(
    q: Tensor, k: Tensor, v: Tensor, *, causal: bool, scale: float, state: State | None, block: int
) -> Result:
    """Token by token: what decoding does."""
    if state is None:
        return moments(q, k, v, causal=causal, scale=scale, state=state, block=block)
    s, outputs = state["s"], []
    for t in range(q.shape[1]):
        s = s + k[:, t, :, :, None].to(s.dtype) * v[:, t, :, None, :].to(s.dtype)
        outputs.append(torch.einsum("bhd,bhdv->bhv", q[:, t].to(s.dtype) * scale, s))
    return torch.stack(outputs, 1).to(q.dtype), {"s": s}


def moments(q: Tensor, k: Tensor, v: Tensor, *, causal: bool, scale: float, state: State | None, block: int) -> Result:
    """Linear in the tokens: blocks of queries, each against itself and the state before it."""
    wide = torch.promote_types(q.dtype, torch.float32)
    if state is None:
        s = torch.einsum("bkhd,bkhv->bhdv", k.to(wide), v.to(wide))
        return torch.einsum("bqhd,bhdv->bqhv", q.to(wide) * scale, s).to(q.dtype), None
    outputs = []
    # split and not sliced: the gradients of slices are each as long as the whole
    for here in zip(*(x.split(block, 1) for x in (q, k, v))):
        o, state = quadratic(*here, causal=causal, scale=scale, state=state, block=block)
        outputs.append(o)
    return torch.cat(outputs, 1), state


def start(shape: Shape) -> State:
    return {"s": shape.zeros(shape.batch, shape.heads, shape.width, shape.value_width)}


def cost(shape: Shape) -> Cost:
    rows = shape.batch * shape.heads * shape.queries
    size = torch.finfo(shape.dtype).bits // 8
    # causal: inside a block of 64 the products too
    inside = min(64, shape.queries) * (shape.width + shape.value_width) if shape.causal else 0
    operations = rows * (4 * shape.width * shape.value_width + inside)
    return Cost(operations, size * (2 * rows * shape.width + 2 * rows * shape.value_width))


OP = Op(
    name="plain",
    impls={"reference": Impl(quadratic), "recurrent": Impl(recurrent), "chunk": Impl(moments), "triton": base.TWIN},
    auto=("triton", "chunk"),
    patterns=frozenset({"NS", "CS", "NC"}),
    state=start,
    handmade=frozenset({"triton"}),
    cost=cost,
    cascade="KV[e,f] = K[e,m] * V[f,m]\nO[f,p] = Q[e,p] * KV[e,f]",
    example=just_qkv,
)
