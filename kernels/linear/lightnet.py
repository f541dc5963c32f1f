"""LightNet: keys are weighted by a softmax over time, which one pass in any order can compute.

Paper:   You Only Scan Once: Efficient Multi-dimension Sequential Modeling with LightNet. arXiv:2405.21022
Rule:    z_t = logsumexp_{j<=t} k_j per channel;  S_t = sum_{j<=t} exp(k_j - z_t)^T v_j;  o_t = scale q_t S_t
Where:   any self-attention, in grids of any dimension without a scan, noncausal cross-attention; k holds log keys
Differs: the normaliser of the empty past is log 0; activation of q, gate and norm are the layer's
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

import gnomon.kernels.linear.base as base
from gnomon.kernels.example import Example, Sizes, just_qkv
from gnomon.kernels.mask import Mask
from gnomon.kernels.op import Cost, Impl, Op, Result, Shape, State
from gnomon.kernels.typed import typed


@typed
def lightnet(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    mask: Mask = None,
    scale: float | None = None,
    state: State | None = None,
    cu_seqlens: Tensor | tuple[Tensor, Tensor] | None = None,
    impl: str = "auto",
    block: int = base.FINE,
) -> Result:
    """q (B,Q,H,D), k (B,K,H,D) log keys, v (B,K,H,V) -> o (B,Q,H,V) and the state {"s": (B,H,D,V), "z": (B,H,D)}."""
    return OP.run(impl, q, k, v, mask=mask, scale=scale, state=state, cu_seqlens=cu_seqlens, options={"block": block})


def reference(
    q: Tensor, k: Tensor, v: Tensor, *, causal: bool, scale: float, state: State | None, block: int
) -> Result:
    """The specification: for every query a softmax over the keys before it; the past is one more key."""
    if state is None:
        return whole(q, k, v, scale=scale), None
    wide, dtype = state["s"].dtype, q.dtype
    q, k, v = q.to(wide) * scale, k.to(wide), v.to(wide)
    logs = torch.cat([state["z"][:, None], k], 1)
    place = torch.arange(q.shape[1] + 1, device=q.device)
    future = (place > place[1:, None])[None, :, :, None, None]
    weights = logs[:, None].masked_fill(future, -torch.inf).softmax(2)
    now = torch.einsum("bqkhd,bkhv->bqhdv", weights[:, :, 1:], v) + weights[:, :, 0, :, :, None] * state["s"][:, None]
    return torch.einsum("bqhd,bqhdv->bqhv", q, now).to(dtype), {"s": now[:, -1], "z": logs.logsumexp(1)}


def whole(q: Tensor, k: Tensor, v: Tensor, *, scale: float) -> Tensor:
    """Noncausal: no scan at all."""
    wide = torch.promote_types(q.dtype, torch.float32)
    s = torch.einsum("bkhd,bkhv->bhdv", k.to(wide).softmax(1), v.to(wide))
    return torch.einsum("bqhd,bhdv->bqhv", q.to(wide) * scale, s).to(q.dtype)


def with_ratios(core: Callable[..., Result]) -> Callable[..., Result]:
    def call(q: Tensor, k: Tensor, v: Tensor, *, causal: bool, scale: float, state: State | None, block: int) -> Result:
        if state is None:
            return whole(q, k, v, scale=scale), None
        g, key, z = ratios(k.to(state["s"].dtype), state["z"])
        o, after = core(q, key, v, causal=causal, scale=scale, state=state, g=g, block=block)
        return o, {**after, "z": z}

    return call


def ratios(k: Tensor, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The decay z_{t-1} - z_t and the key exp(k_t - z_t) of every token, and the last z."""
    running = torch.logaddexp(z[:, None], k.logcumsumexp(1))
    earlier = torch.cat([z[:, None], running[:, :-1]], 1)
    return earlier - running, (k - running).exp(), running[:, -1]


def start(shape: Shape) -> State:
    empty = shape.zeros(shape.batch, shape.heads, shape.width) - torch.inf
    return {**base.start(shape), "z": empty}


def cost(shape: Shape) -> Cost:
    if shape.causal:
        return base.cost(gates="vector")(shape)
    rows = shape.batch * shape.heads
    tokens = rows * (shape.queries + shape.keys)
    size = torch.finfo(shape.dtype).bits // 8
    operations = 2 * tokens * shape.width * shape.value_width
    return Cost(operations, size * tokens * (shape.width + shape.value_width), rows * shape.keys * shape.width)


def steep(sizes: Sizes) -> Example:
    """Log keys far apart: new ones that drown the past, and ones that do not matter."""
    return Example(k=100 * sizes.randn(sizes.batch, sizes.keys, sizes.key_heads, sizes.width), options={"block": 4})


OP = Op(
    name="lightnet",
    impls={"reference": Impl(reference), **base.impls(with_ratios, packed=False)},
    auto=base.AUTO,
    patterns=frozenset({"NS", "CS", "NC"}),
    state=start,
    handmade=frozenset({"triton"}),
    cost=cost,
    cascade="""
        GM[e]   = max(K[e,m])
        N[e,m]  = exp(K[e,m] - GM[e])
        Z[e]    = sum(N[e,m])
        NV[e,f] = N[e,m] * V[f,m]
        S[e,f]  = NV[e,f] / Z[e]
        O[f,p]  = Q[e,p] * S[e,f]
    """,
    example=just_qkv,
    variants={"steep": steep},
)
