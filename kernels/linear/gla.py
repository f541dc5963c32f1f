"""GLA: gated linear attention, whose memory fades by channel as the tokens say.

Paper:   Gated Linear Attention Transformers with Hardware-Efficient Training. arXiv:2312.06635
Rule:    S_t = diag(exp g_t) S_{t-1} + k_t^T v_t;  o_t = scale q_t S_t, with log decays g_t <= 0 per channel of the key
Where:   causal self-attention; the gate's projection and the output's norm and gate are the layer's
Differs: g may be -inf, a hard reset
"""

from __future__ import annotations

import torch
from torch import Tensor

import gnomon.kernels.linear.base as base
from gnomon.kernels.analysis.recurrences import recurrence
from gnomon.kernels.example import Example, Sizes
from gnomon.kernels.mask import Mask
from gnomon.kernels.op import Impl, Op, Result, State
from gnomon.kernels.typed import typed


@typed
def gla(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    g: Tensor,
    mask: Mask = None,
    scale: float | None = None,
    state: State | None = None,
    cu_seqlens: Tensor | None = None,
    impl: str = "auto",
    block: int = base.FINE,
) -> Result:
    """q, k (B,T,H,D), v (B,T,H,V), g (B,T,H,D) -> o (B,T,H,V) and the state {"s": (B,H,D,V)}."""
    base.check_gates("gla", k, g=g, vector=True)
    return OP.run(
        impl, q, k, v, mask=mask, scale=scale, state=state, cu_seqlens=cu_seqlens,
        per_key={"g": g}, options={"block": block},
    )  # fmt: skip


def quadratic(
    q: Tensor, k: Tensor, v: Tensor, *, causal: bool, scale: float, state: State, g: Tensor, block: int
) -> Result:
    """The specification, unrolled: what token j wrote has faded by the gates of all tokens after it."""
    s, dtype = state["s"], q.dtype
    q, k, v, g = (x.to(s.dtype) for x in (q, k, v, g))
    outputs = []
    for t in range(q.shape[1]):
        # walking back from t: 0, g_t, g_t + g_{t-1}, ...
        faded = torch.cat([torch.zeros_like(g[:, :1]), g[:, : t + 1].flip(1)], 1).cumsum(1).flip(1).exp()
        now = faded[:, 0, :, :, None] * state["s"]
        now = now + torch.einsum("bkhd,bkhd,bkhv->bhdv", faded[:, 1:], k[:, : t + 1], v[:, : t + 1])
        outputs.append(torch.einsum("bhd,bhdv->bhv", q[:, t] * scale, now))
    return torch.stack(outputs, 1).to(dtype), {"s": now}


def example(sizes: Sizes) -> Example:
    g = -sizes.rand(sizes.batch, sizes.keys, sizes.key_heads, sizes.width)
    return Example(per_key={"g": g}, options={"block": 4})


def extreme(sizes: Sizes) -> Example:
    """Gates from 1 to exp(-1000)."""
    g = -1000 * sizes.rand(sizes.batch, sizes.keys, sizes.heads, sizes.width) ** 8
    return Example(per_key={"g": g})


OP = Op(
    name="gla",
    impls={"reference": Impl(quadratic), **base.IMPLS},
    auto=base.AUTO,
    patterns=frozenset({"CS"}),
    state=base.start,
    handmade=frozenset({"triton"}),
    cost=base.cost(gates="vector"),
    cascade=recurrence(gates="vector"),
    example=example,
    variants={"extreme": extreme},
)
