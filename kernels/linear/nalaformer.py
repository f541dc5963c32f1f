"""NaLaFormer: linear attention in which the norm of a query is an exponent, so that it sharpens as in softmax.

Paper:   Norm x Direction: Restoring the Missing Query Norm in Vision Linear Attention. arXiv:2506.21137
Rule:    n = |q|, d = q / n, p = 3 (1/2 + tanh n);  f(q) = [relu(d), relu(-d)]^p,  f(k) = [relu(k), relu(-k)]^3;
         o_i = f(q_i) mean_j f(k_j) v_j / (f(q_i) mean_j f(k_j) + eps)
Where:   vision towers (noncausal self), cross-attention; causal with prefixes in place of the whole
Differs: a query shorter than eps is divided by eps, for zero would be NaN; rotation (of each half, in the numerator)
         comes as angles; local convolution, norm and output gate are a module's; the scale cancels and is not read
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from gnomon.kernels import moments
from gnomon.kernels.example import just_qkv
from gnomon.kernels.mask import Mask
from gnomon.kernels.op import Op, Result, State
from gnomon.kernels.typed import typed


@typed
def nalaformer(
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
    """q (B,Q,H,D), k (B,K,Hk,D), v (B,K,Hv,V), angles (1 or B,Q or K,h,D/2) -> o (B,Q,H,V), state {s, z, n}."""
    per_query, per_key = moments.companions("nalaformer", q, angles_q, angles_k)
    return OP.run(
        impl, q, k, v, mask=mask, scale=scale, state=state, cu_seqlens=cu_seqlens,
        per_query=per_query, per_key=per_key, options={"eps": eps, "block": block},
    )  # fmt: skip


def signed(x: Tensor) -> Tensor:
    """Positive and negative parts side by side."""
    return torch.cat([x.relu(), (-x).relu()], -1)


def feature_q(q: Tensor, eps: float) -> Tensor:
    norm = q.norm(dim=-1, keepdim=True)
    direction = q / norm.clamp(min=eps)
    # a power costs much more than its place
    size = direction.abs() ** (3 * (0.5 + norm.tanh()))
    return torch.cat([size * (direction > 0), size * (direction < 0)], -1)


def attend(
    way: moments.Way, q: Tensor, k: Tensor, v: Tensor, *, causal: bool, scale: float, state: State | None, eps: float,
    block: int, angles_q: Tensor | None = None, angles_k: Tensor | None = None,
) -> Result:  # fmt: skip
    dtype = q.dtype
    q, k, v = moments.widen(q, k, v)
    q, k = feature_q(q, eps), signed(k**3)
    turned = None
    if angles_q is not None and angles_k is not None:
        # both halves turn alike
        turned = moments.turn(q, k, torch.cat([angles_q] * 2, -1), torch.cat([angles_k] * 2, -1))
    values, mass, after = way(q, k, v, state, turned=turned, block=block)
    n, counted = moments.count(k, state)
    return (values / n / (mass / n + eps)).to(dtype), moments.join(after, counted)


OP = Op(
    name="nalaformer",
    impls=moments.impls(attend, causal=True, twin="linear.moments:nalaformer"),
    auto=("triton", "chunk"),
    handmade=frozenset({"triton"}),
    patterns=frozenset({"NS", "CS", "NC"}),
    state=partial(moments.start, names="s z n", features=2),
    # a power is a logarithm and an exponential
    cost=partial(moments.cost, features=2, exponentials=2),
    cascade=moments.QUOTIENT,
    example=just_qkv,
    variants={"turned": moments.turned_example},
)
