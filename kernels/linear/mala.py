"""MALA: linear attention whose normalisation lets longer queries look more sharply.

Paper:   Rectifying Magnitude Neglect in Linear Attention. arXiv:2507.00698
Rule:    x_ij = (scale / n) f(q_i) f(k_j), f = elu + 1;  c_i = sum_j x_ij;  A_ij = (1 + 1 / (c_i + eps)) x_ij - c_i / n
Where:   vision towers (noncausal self), cross-attention; causal with prefixes in place of the whole
Differs: rotation (of x_ij, never of c_i) comes as angles; local convolution and output gate are a module's
"""

from __future__ import annotations

from functools import partial

from torch import Tensor

from gnomon.kernels import moments
from gnomon.kernels.example import just_qkv
from gnomon.kernels.mask import Mask
from gnomon.kernels.op import Op, Result, State
from gnomon.kernels.typed import typed


@typed
def mala(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    angles_q: Tensor | None = None,
    angles_k: Tensor | None = None,
    mask: Mask = None,
    scale: float | None = None,
    state: State | None = None,
    cu_seqlens: Tensor | tuple[Tensor, Tensor] | None = None,
    impl: str = "auto",
    eps: float = 1e-6,
    block: int = 64,
) -> Result:
    """q (B,Q,H,D), k (B,K,Hk,D), v (B,K,Hv,V), angles (1 or B,Q or K,h,D/2) -> o (B,Q,H,V), state {s, z, u, n}."""
    per_query, per_key = moments.companions("mala", q, angles_q, angles_k)
    return OP.run(
        impl, q, k, v, mask=mask, scale=scale, state=state, cu_seqlens=cu_seqlens,
        per_query=per_query, per_key=per_key, options={"eps": eps, "block": block},
    )  # fmt: skip


def attend(
    way: moments.Way, q: Tensor, k: Tensor, v: Tensor, *, causal: bool, scale: float, state: State | None, eps: float,
    block: int, angles_q: Tensor | None = None, angles_k: Tensor | None = None,
) -> Result:  # fmt: skip
    dtype = q.dtype
    q, k, v = moments.widen(q, k, v)
    q, k = moments.elu1(q), moments.elu1(k)
    values, mass, after = way(q, k, v, state, turned=moments.turn(q, k, angles_q, angles_k), block=block)
    n, counted = moments.count(k, state)
    u, summed = moments.total(v, state)
    c = scale / n * mass
    o = (1 + 1 / (c + eps)) * (scale / n * values) - c * (u / n)
    return o.to(dtype), moments.join(after, counted, summed)


OP = Op(
    name="mala",
    impls=moments.impls(attend, causal=True, twin="linear.moments:mala"),
    auto=("triton", "chunk"),
    handmade=frozenset({"triton"}),
    patterns=frozenset({"NS", "CS", "NC"}),
    state=partial(moments.start, names="s z u n"),
    cost=partial(moments.cost, exponentials=1),
    cascade="""
        S[e,f] = K[e,m] * V[f,m]
        Z[e]   = sum(K[e,m])
        U[f]   = sum(V[f,m])
        Y[f,p] = Q[e,p] * S[e,f]
        C[p]   = Q[e,p] * Z[e]
        O[f,p] = Y[f,p] + Y[f,p] / C[p] - C[p] * U[f]
    """,
    example=just_qkv,
    variants={"turned": moments.turned_example},
)
