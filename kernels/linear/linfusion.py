"""LinFusion: normalised linear attention that stands in for self-attention in a pretrained diffusion model.

Paper:   LinFusion: 1 GPU, 1 Minute, 16K Image. arXiv:2409.02097
Rule:    o_i = f(q_i) mean_j f(k_j) v_j / (f(q_i) mean_j f(k_j) + eps), f = elu + 1, eps = 1e-4
Where:   vision towers and generators (noncausal self), cross-attention
Differs: both means are over the keys; the residual MLPs in front of q and k are a module's; the scale is not read
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
def linfusion(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    mask: Mask = None,
    scale: float | None = None,
    cu_seqlens: Tensor | tuple[Tensor, Tensor] | None = None,
    impl: str = "auto",
    eps: float = 1e-4,
) -> Result:
    """q (B,Q,H,D), k (B,K,Hk,D), v (B,K,Hv,V) -> o (B,Q,H,V) and None."""
    return OP.run(impl, q, k, v, mask=mask, scale=scale, cu_seqlens=cu_seqlens, options={"eps": eps})


def attend(
    way: moments.Way, q: Tensor, k: Tensor, v: Tensor, *, causal: bool, scale: float, state: State | None, eps: float
) -> Result:
    dtype, n = q.dtype, k.shape[1]
    q, k, v = moments.widen(q, k, v)
    values, mass, _ = way(moments.elu1(q), moments.elu1(k), v, None)
    return (values / n / (mass / n + eps)).to(dtype), None


OP = Op(
    name="linfusion",
    impls=moments.impls(attend, causal=False, twin="linear.moments:linfusion"),
    auto=("triton", "chunk"),
    handmade=frozenset({"triton"}),
    patterns=frozenset({"NS", "NC"}),
    cost=partial(moments.cost, exponentials=1),
    cascade=moments.QUOTIENT,
    example=just_qkv,
)
