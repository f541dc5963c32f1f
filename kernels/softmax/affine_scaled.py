"""Affine-scaled: softmax weights times a factor per query and head, plus what keeps their sum at its running mean.

Paper:   Affine-Scaled Attention: Towards Flexible and Stable Transformer Attention. arXiv:2602.23057
Rule:    A_ij = alpha_i softmax_ij + (average - alpha_i) / n_i over the n_i visible keys;  o = A v
Where:   any self- or cross-attention
Differs: alpha comes as a tensor (`clipped` is the paper's map of its logits); the running mean of alpha is the layer's;
         average 1 and alpha 1 are softmax attention
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from gnomon.kernels import attend
from gnomon.kernels.checks import check_qkv, refuse
from gnomon.kernels.example import Example, Sizes
from gnomon.kernels.mask import Bound, Causal, Everything, Mask
from gnomon.kernels.op import Impl, Op, Result, State, repeat
from gnomon.kernels.softmax.base import over_attention, remember
from gnomon.kernels.typed import typed


@typed
def affine_scaled(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    alpha: Tensor,
    average: Tensor | float = 1.0,
    mask: Mask = None,
    scale: float | None = None,
    state: State | None = None,
    cu_seqlens: Tensor | tuple[Tensor, Tensor] | None = None,
    impl: str = "auto",
) -> Result:
    """q (B,Q,H,D), k (B,K,Hk,D), v (B,K,Hk,V), alpha (B,Q,H), average (H,) -> o (B,Q,H,V), keys and values so far."""
    check_qkv("affine_scaled", q, k, v)
    if alpha.ndim != 3:
        raise refuse("affine_scaled", f"alpha has shape {tuple(alpha.shape)}", "give (batch, queries, heads)")
    if not isinstance(average, Tensor):
        # and not float32, which a float64 call would see
        average = torch.tensor(average, dtype=torch.float64)
    heads = max(x.shape[2] for x in (q, k, v))
    if tuple(average.shape) not in ((), (1,), (heads,)):
        raise refuse("affine_scaled", f"average has shape {tuple(average.shape)}", f"give a number, or ({heads},)")
    k, v, state = remember("affine_scaled", k, v, state, cu_seqlens)
    o, _ = OP.run(
        impl, q, k, v, mask=mask, scale=scale, cu_seqlens=cu_seqlens, per_query={"alpha": alpha},
        options={"average": average},
    )  # fmt: skip
    return o, state


def clipped(x: Tensor) -> Tensor:
    """alpha from its logits."""
    return (0.1 * x + 0.5).clamp(0, 1)


def dense(
    q: Tensor, k: Tensor, v: Tensor, *, mask: Bound, scale: float, state: State | None = None, alpha: Tensor,
    average: Tensor,
) -> Result:  # fmt: skip
    """The specification: the matrix of weights is alpha softmax + beta where the mask allows."""
    wide = torch.promote_types(q.dtype, torch.float32)
    allowed = mask.dense(q.shape[2])
    scores = torch.einsum("bqhd,bkhd->bhqk", q.to(wide), k.to(wide)) * scale
    scores = scores.masked_fill(~allowed, -torch.inf).masked_fill(~allowed.any(-1, keepdim=True), 0)
    alpha = alpha.to(wide).transpose(1, 2)[..., None]
    average = average.to(q.device, wide).reshape(-1, 1, 1)
    beta = (average - alpha) / allowed.sum(-1, keepdim=True).clamp(min=1)
    weights = (alpha * scores.softmax(-1) + beta).masked_fill(~allowed, 0)
    return torch.einsum("bhqk,bkhv->bqhv", weights, v.to(wide)).to(q.dtype), None


def scaled(
    attention: Callable[..., Result], q: Tensor, k: Tensor, v: Tensor, *, mask: Bound, scale: float,
    state: State | None = None, alpha: Tensor, average: Tensor,
) -> Result:  # fmt: skip
    """Any softmax attention, and the mean of the visible values."""
    wide = torch.promote_types(q.dtype, torch.float32)
    o, _ = attention(q, k, v, mask=mask, scale=scale)
    heads = o.shape[2]
    alpha = repeat(alpha, heads).to(wide)[..., None]
    average = average.to(q.device, wide).reshape(-1, 1)
    mean = repeat(visible_mean(repeat(v, heads) if mask.rule.per_head else v, mask), heads)
    return (alpha * o.to(wide) + (average - alpha) * mean).to(q.dtype), None


def visible_mean(v: Tensor, mask: Bound, strip: int = 512) -> Tensor:
    """The mean of the values that each query sees (zero for none): a running sum where that is it, else by strips."""
    v = v.to(torch.promote_types(v.dtype, torch.float32))
    if not mask.segmented and isinstance(mask.expr, Everything):
        return v.mean(1, keepdim=True)
    in_order = not mask.segmented and isinstance(mask.expr, Causal) and mask.q is mask.k
    if in_order and bool((mask.q["p"].diff() > 0).all()):
        n = torch.arange(1, v.shape[1] + 1, device=v.device, dtype=v.dtype)
        return v.cumsum(1) / n[:, None, None]
    means = []
    for start in range(0, mask.q.length, strip):
        seen = mask.dense(v.shape[2], start=start, stop=min(start + strip, mask.q.length)).to(v.dtype)
        means.append(seen @ v.transpose(1, 2) / seen.sum(-1, keepdim=True).clamp(min=1))
    return torch.cat(means, 2).transpose(1, 2)


def example(sizes: Sizes) -> Example:
    return Example(
        per_query={"alpha": sizes.rand(sizes.batch, sizes.queries, sizes.heads)},
        parameters={"average": sizes.rand(sizes.heads)},
    )


OP = Op(
    name="affine_scaled",
    impls={**over_attention(scaled), "reference": Impl(dense, packed=True)},
    auto=attend.AUTO,
    patterns=frozenset({"NS", "CS", "NC", "CC"}),
    masks=True,
    cache=True,
    cost=attend.cost,
    cascade=attend.CASCADE + "U[f] = sum(V[f,m])\nA[f,p] = O[f,p] + U[f]\n",
    example=example,
)
