"""Gated DeltaNet: the delta rule on a memory that fades as the tokens say.

Paper:   Gated Delta Networks: Improving Mamba2 with Delta Rule. arXiv:2412.06464
Rule:    S_t = exp(g_t) (I - beta_t k_t^T k_t) S_{t-1} + beta_t k_t^T v_t;  o_t = scale q_t S_t, g_t <= 0 one per head
Where:   causal self-attention; fewer heads of q and k than of v, g and beta; the gates' projections are the layer's
Differs: longer keys make the state explode: bring unit keys, or say normalize=True (x / sqrt(|x|^2 + 1e-6), q too)
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
def gated_deltanet(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    g: Tensor,
    beta: Tensor,
    normalize: bool = False,
    mask: Mask = None,
    scale: float | None = None,
    state: State | None = None,
    cu_seqlens: Tensor | None = None,
    impl: str = "auto",
    block: int = base.CHUNK,
) -> Result:
    """q, k (B,T,Hk,D), v (B,T,H,V), g and beta (B,T,H) -> o (B,T,H,V) and the state {"s": (B,H,D,V)}."""
    base.check_gates("gated_deltanet", k, g=g, beta=beta)
    return OP.run(
        impl, q, k, v, mask=mask, scale=scale, state=state, cu_seqlens=cu_seqlens,
        per_key={"g": g, "beta": beta}, options={"normalize": normalize, "block": block},
    )  # fmt: skip


def reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    causal: bool,
    scale: float,
    state: State,
    g: Tensor,
    beta: Tensor,
    normalize: bool,
    block: int,
) -> Result:
    """The specification: the transition as a matrix."""
    s, dtype = state["s"], q.dtype
    q, k, v, g, beta = (x.to(s.dtype) for x in (q, k, v, g, beta))
    if normalize:
        q, k = base.unit(q), base.unit(k)
    identity, outputs = torch.eye(q.shape[3], dtype=s.dtype, device=q.device), []
    for t in range(q.shape[1]):
        write = beta[:, t, :, None] * k[:, t]
        keep = g[:, t, :, None, None].exp() * (identity - torch.einsum("bhd,bhe->bhde", write, k[:, t]))
        s = torch.einsum("bhde,bhev->bhdv", keep, s) + torch.einsum("bhd,bhv->bhdv", write, v[:, t])
        outputs.append(torch.einsum("bhd,bhdv->bhv", q[:, t] * scale, s))
    return torch.stack(outputs, 1).to(dtype), {"s": s}


def example(sizes: Sizes) -> Example:
    size = (sizes.batch, sizes.keys, sizes.heads)
    return Example(
        per_key={"g": -sizes.rand(*size), "beta": sizes.rand(*size)}, options={"normalize": True, "block": 4}
    )


def extreme(sizes: Sizes) -> Example:
    """Gates from 1 to exp(-1000), eigenvalues down to -1."""
    size = (sizes.batch, sizes.keys, sizes.heads)
    per_key = {"g": -1000 * sizes.rand(*size) ** 8, "beta": 2 * sizes.rand(*size)}
    return Example(per_key=per_key, options={"normalize": True})


OP = Op(
    name="gated_deltanet",
    impls={"reference": Impl(reference), **base.IMPLS},
    auto=base.AUTO,
    patterns=frozenset({"CS"}),
    state=base.start,
    handmade=frozenset({"triton"}),
    cost=base.cost(gates="scalar", delta=True),
    cascade=recurrence(gates="scalar", delta=True),
    example=example,
    variants={"extreme": extreme},
)
