"""HGRN-2: gated linear attention whose key is what the gate lets go, so that nothing is written that was not forgotten.

Paper:   HGRN2: Gated Linear RNNs with State Expansion. arXiv:2404.07904
Rule:    f_t = lower + (1 - lower) sigmoid(k_t);  S_t = diag(f_t) S_{t-1} + (1 - f_t)^T v_t;  o_t = scale q_t S_t
Where:   causal self-attention; k holds the logits of the forget gate, and `lower_bounds` rise with the layer
Differs: activation of q and the output's norm are the layer's
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

import gnomon.kernels.linear.base as base
from gnomon.kernels.analysis.recurrences import recurrence
from gnomon.kernels.example import Example, Sizes, just_qkv
from gnomon.kernels.mask import Mask
from gnomon.kernels.op import Impl, Op, Result, State
from gnomon.kernels.typed import typed


@typed
def hgrn2(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    lower: Tensor | None = None,
    mask: Mask = None,
    scale: float | None = None,
    state: State | None = None,
    cu_seqlens: Tensor | None = None,
    impl: str = "auto",
    block: int = base.FINE,
) -> Result:
    """q, k (B,T,H,D), v (B,T,H,V), lower (H,D) in [0, 1) -> o (B,T,H,V) and the state {"s": (B,H,D,V)}."""
    if lower is not None:
        base.check_per_head("hgrn2", "lower", lower, q, k, v, channels=True)
    options = {"lower": lower, "block": block}
    return OP.run(impl, q, k, v, mask=mask, scale=scale, state=state, cu_seqlens=cu_seqlens, options=options)


def lower_bounds(logits: Tensor) -> Tensor:
    """(L,...), one row per layer, to the bounds of all layers: 0 in the first one, rising, below 1."""
    shares = logits.softmax(0)
    return shares.cumsum(0) - shares[0]


def reference(
    q: Tensor, k: Tensor, v: Tensor, *, causal: bool, scale: float, state: State, lower: Tensor | None, block: int
) -> Result:
    """The specification: forget and write by the same gate, token by token."""
    s, dtype = state["s"], q.dtype
    f = k.to(s.dtype).sigmoid()
    if lower is not None:
        f = lower.to(s.dtype) + (1 - lower.to(s.dtype)) * f
    outputs = []
    for t in range(q.shape[1]):
        s = f[:, t, :, :, None] * s + (1 - f[:, t, :, :, None]) * v[:, t, :, None, :].to(s.dtype)
        outputs.append(torch.einsum("bhd,bhdv->bhv", q[:, t].to(s.dtype) * scale, s))
    return torch.stack(outputs, 1).to(dtype), {"s": s}


def with_gate(core: Callable[..., Result]) -> Callable[..., Result]:
    def call(
        q: Tensor, k: Tensor, v: Tensor, *, causal: bool, scale: float, state: State, lower: Tensor | None, block: int
    ) -> Result:
        g, key = gate(k.to(state["s"].dtype), lower)
        return core(q, key, v, causal=causal, scale=scale, state=state, g=g, block=block)

    return call


def gate(logits: Tensor, lower: Tensor | None) -> tuple[Tensor, Tensor]:
    """log f and 1 - f, both exact where they are small."""
    if lower is None:
        return logsigmoid(logits), torch.sigmoid(-logits)
    lower = lower.to(logits.dtype)
    f, key = lower + (1 - lower) * torch.sigmoid(logits), (1 - lower) * torch.sigmoid(-logits)
    # from the smaller of f and 1 - f; clamped, for `where` has the gradients of both
    low, high = f.clamp_min(torch.finfo(f.dtype).tiny).log(), torch.log1p(-key.clamp_max(0.5))
    return torch.where(key < 0.5, high, low), key


def bounded(sizes: Sizes) -> Example:
    return Example(parameters={"lower": sizes.rand(sizes.heads, sizes.width)}, options={"block": 4})


OP = Op(
    name="hgrn2",
    impls={"reference": Impl(reference), **base.impls(with_gate)},
    auto=base.AUTO,
    patterns=frozenset({"CS"}),
    state=base.start,
    handmade=frozenset({"triton"}),
    cost=base.cost(gates="vector"),
    # G are the logs of the forget gates, I is 1
    cascade="""
        F[e,m1,m0] = exp(G[e,m1,m0])
        K[e,m1,m0] = I - F[e,m1,m0]
    """
    + recurrence(gates="vector"),
    example=just_qkv,
    variants={"bounded": bounded},
)
