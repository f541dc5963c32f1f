"""DeltaNet: linear attention that overwrites what is stored under a key, instead of adding to it.

Paper:   Parallelizing Linear Transformers with the Delta Rule over Sequence Length. arXiv:2406.06484
Rule:    S_t = (I - beta_t k_t^T k_t) S_{t-1} + beta_t k_t^T v_t;  o_t = scale q_t S_t
Where:   causal self-attention; beta in (0, 1), or (0, 2) for negative eigenvalues; short convolutions are the layer's
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
def deltanet(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    beta: Tensor,
    normalize: bool = False,
    mask: Mask = None,
    scale: float | None = None,
    state: State | None = None,
    cu_seqlens: Tensor | None = None,
    impl: str = "auto",
    block: int = base.CHUNK,
) -> Result:
    """q, k (B,T,H,D), v (B,T,H,V), beta (B,T,H) -> o (B,T,H,V) and the state {"s": (B,H,D,V)}."""
    base.check_gates("deltanet", k, beta=beta)
    return OP.run(
        impl, q, k, v, mask=mask, scale=scale, state=state, cu_seqlens=cu_seqlens,
        per_key={"beta": beta}, options={"normalize": normalize, "block": block},
    )  # fmt: skip


def reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    causal: bool,
    scale: float,
    state: State,
    beta: Tensor,
    normalize: bool,
    block: int,
) -> Result:
    """The specification: the transition as a matrix."""
    s, dtype = state["s"], q.dtype
    q, k, v, beta = (x.to(s.dtype) for x in (q, k, v, beta))
    if normalize:
        q, k = base.unit(q), base.unit(k)
    identity, outputs = torch.eye(q.shape[3], dtype=s.dtype, device=q.device), []
    for t in range(q.shape[1]):
        write = beta[:, t, :, None] * k[:, t]
        keep = identity - torch.einsum("bhd,bhe->bhde", write, k[:, t])
        s = torch.einsum("bhde,bhev->bhdv", keep, s) + torch.einsum("bhd,bhv->bhdv", write, v[:, t])
        outputs.append(torch.einsum("bhd,bhdv->bhv", q[:, t] * scale, s))
    return torch.stack(outputs, 1).to(dtype), {"s": s}


def example(sizes: Sizes) -> Example:
    beta = sizes.rand(sizes.batch, sizes.keys, sizes.heads)
    return Example(per_key={"beta": beta}, options={"normalize": True, "block": 4})


def negative(sizes: Sizes) -> Example:
    """Eigenvalues of the transition down to -1; keys that come with length one."""
    k = base.unit(sizes.randn(sizes.batch, sizes.keys, sizes.key_heads, sizes.width))
    return Example(k=k, per_key={"beta": 2 * sizes.rand(sizes.batch, sizes.keys, sizes.key_heads)})


OP = Op(
    name="deltanet",
    impls={"reference": Impl(reference), **base.IMPLS},
    auto=base.AUTO,
    patterns=frozenset({"CS"}),
    state=base.start,
    handmade=frozenset({"triton"}),
    cost=base.cost(delta=True),
    cascade=recurrence(delta=True),
    example=example,
    variants={"negative": negative},
)
