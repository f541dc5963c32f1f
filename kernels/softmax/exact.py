"""Exact: softmax attention, every query over every key that its mask lets it see.

Paper:   Attention Is All You Need. arXiv:1706.03762
Rule:    o_i = sum_j softmax_j(scale q_i k_j) v_j over the visible j; zero where nothing is visible
Where:   any self- or cross-attention; the truth that the other operators are measured against
Differs: nothing; a row without a visible key is defined (zero) instead of NaN
"""

from __future__ import annotations

from torch import Tensor

from gnomon.kernels import attend
from gnomon.kernels.example import just_qkv
from gnomon.kernels.mask import Mask
from gnomon.kernels.op import Op, Result, State
from gnomon.kernels.softmax.base import remember
from gnomon.kernels.typed import typed

OP = Op(
    name="exact",
    impls=attend.IMPLS,
    auto=attend.AUTO,
    patterns=frozenset({"NS", "CS", "NC", "CC"}),
    masks=True,
    cache=True,
    cost=attend.cost,
    cascade=attend.CASCADE,
    example=just_qkv,
)


@typed
def exact(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    mask: Mask = None,
    scale: float | None = None,
    state: State | None = None,
    cu_seqlens: Tensor | tuple[Tensor, Tensor] | None = None,
    impl: str = "auto",
) -> Result:
    """q (B,Q,H,D), k (B,K,Hk,D), v (B,K,Hk,V) -> o (B,Q,H,V) and the keys and values so far."""
    k, v, state = remember("exact", k, v, state, cu_seqlens)
    return OP.run(impl, q, k, v, mask=mask, scale=scale, cu_seqlens=cu_seqlens)[0], state
