"""RALA: linear attention whose keys are weighed by what the queries want on average, for a buffer of higher rank.

Paper:   Breaking the Low-Rank Dilemma of Linear Attention. arXiv:2411.07635
Rule:    a = K softmax_j(scale mean_i f(q_i) f(k_j)), f = elu + 1;  k~_j = a_j f(k_j);
         o_i = f(q_i) mean_j k~_j v_j / (f(q_i) mean_j k~_j + eps)
Where:   vision towers (noncausal self), cross-attention; the softmax runs over all tokens, so never causal
Differs: rotation (of the numerator alone) comes as angles; local convolution and output gate are a module's
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
def rala(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    angles_q: Tensor | None = None,
    angles_k: Tensor | None = None,
    mask: Mask = None,
    scale: float | None = None,
    cu_seqlens: Tensor | tuple[Tensor, Tensor] | None = None,
    impl: str = "auto",
    eps: float = 1e-6,
) -> Result:
    """q (B,Q,H,D), k (B,K,Hk,D), v (B,K,Hv,V), angles (1 or B,Q or K,h,D/2) -> o (B,Q,H,V) and None."""
    per_query, per_key = moments.companions("rala", q, angles_q, angles_k)
    return OP.run(
        impl, q, k, v, mask=mask, scale=scale, cu_seqlens=cu_seqlens, per_query=per_query, per_key=per_key,
        options={"eps": eps},
    )  # fmt: skip


def attend(
    way: moments.Way, q: Tensor, k: Tensor, v: Tensor, *, causal: bool, scale: float, state: State | None, eps: float,
    angles_q: Tensor | None = None, angles_k: Tensor | None = None,
) -> Result:  # fmt: skip
    dtype, n = q.dtype, k.shape[1]
    q, k, v = moments.widen(q, k, v)
    q, k = moments.elu1(q), moments.elu1(k)
    wanted = (scale * q.mean(1, keepdim=True) * k).sum(-1, keepdim=True)
    k = n * wanted.softmax(1) * k
    values, mass, _ = way(q, k, v, None, turned=moments.turn(q, k, angles_q, angles_k))
    return (values / n / (mass / n + eps)).to(dtype), None


OP = Op(
    name="rala",
    impls=moments.impls(attend, causal=False, twin="linear.moments:rala"),
    auto=("triton", "chunk"),
    handmade=frozenset({"triton"}),
    patterns=frozenset({"NS", "NC"}),
    cost=partial(moments.cost, exponentials=1),
    cascade="""
        A[e]   = sum(Q[e,p])
        L[m]   = A[e] * K[e,m]
        GM     = max(L[m])
        W[m]   = exp(L[m] - GM)
        S[e,f] = W[m] * K[e,m] * V[f,m]
        Z[e]   = W[m] * K[e,m]
        Y[f,p] = Q[e,p] * S[e,f]
        C[p]   = Q[e,p] * Z[e]
        O[f,p] = Y[f,p] / C[p]
    """,
    example=just_qkv,
    variants={"turned": moments.turned_example},
)
