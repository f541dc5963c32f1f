"""InLine: linear attention that subtracts the mean score instead of dividing by the sum, and so stays injective.

Paper:   Bridging the Divide: Reconsidering Softmax and Linear Attention. arXiv:2412.06590
Rule:    x_ij = (scale / n) q_i k_j;  A_ij = x_ij - mean_l x_il + 1/n;  o_i = sum_j A_ij v_j
Where:   vision towers (noncausal self), cross-attention; causal with prefixes in place of the whole
Differs: no feature map: map q and k before the call for one; the local 3 x 3 residual is a module's
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
def inline(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    mask: Mask = None,
    scale: float | None = None,
    state: State | None = None,
    cu_seqlens: Tensor | tuple[Tensor, Tensor] | None = None,
    impl: str = "auto",
    block: int = 64,
) -> Result:
    """q (B,Q,H,D), k (B,K,Hk,D), v (B,K,Hv,V) -> o (B,Q,H,V) and, with mask=CAUSAL, the state {s, z, u, n}."""
    return OP.run(impl, q, k, v, mask=mask, scale=scale, state=state, cu_seqlens=cu_seqlens, options={"block": block})


def attend(
    way: moments.Way, q: Tensor, k: Tensor, v: Tensor, *, causal: bool, scale: float, state: State | None, block: int
) -> Result:
    dtype = q.dtype
    q, k, v = moments.widen(q, k, v)
    values, mass, after = way(q, k, v, state, block=block)
    n, counted = moments.count(k, state)
    u, summed = moments.total(v, state)
    o = scale / n * values + (1 - scale / n * mass) * (u / n)
    return o.to(dtype), moments.join(after, counted, summed)


OP = Op(
    name="inline",
    impls=moments.impls(attend, causal=True, twin="linear.moments:inline"),
    auto=("triton", "chunk"),
    handmade=frozenset({"triton"}),
    patterns=frozenset({"NS", "CS", "NC"}),
    state=partial(moments.start, names="s z u n"),
    cost=moments.cost,
    cascade="""
        S[e,f] = K[e,m] * V[f,m]
        Z[e]   = sum(K[e,m])
        U[f]   = sum(V[f,m])
        Y[f,p] = Q[e,p] * S[e,f]
        C[p]   = Q[e,p] * Z[e]
        O[f,p] = Y[f,p] + U[f] - C[p] * U[f]
    """,
    example=just_qkv,
)
