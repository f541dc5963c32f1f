"""LoLCATs: softmax over a sliding window and Hedgehog over all that is older, with one denominator.

Paper:   LoLCATs: On Low-Rank Linearizing of Large Language Models. arXiv:2410.10254
Rule:    e_ij = mu_h exp(scale q_i k_j - m_i) for i - j < window, else nu_h phi(W q_i) phi(W k_j);
         o_i = sum_j e_ij v_j / sum_j e_ij;  m_i the largest score in the window, mu_h = sigmoid(factor_h), nu_h = 1
Where:   causal attention of converted decoders; q_map and k_map are the learned maps of q and k after RoPE
Differs: sliding windows, no blocks; m_i scales only the window's part, as trained checkpoints want, and has a gradient
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

import gnomon.kernels.linear.base as base
from gnomon.kernels.checks import check_cache, check_names, check_qkv, check_state, refuse
from gnomon.kernels.example import Example, Sizes
from gnomon.kernels.mask import Bound, Mask
from gnomon.kernels.op import Cost, Impl, Op, Result, Shape, State
from gnomon.kernels.typed import typed


@typed
def lolcats(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    factor: Tensor,
    q_map: Tensor | None = None,
    k_map: Tensor | None = None,
    window: int = 64,
    affine: bool = False,
    joint: bool = False,
    mask: Mask = None,
    scale: float | None = None,
    state: State | None = None,
    cu_seqlens: Tensor | tuple[Tensor, Tensor] | None = None,
    impl: str = "auto",
    block: int = base.CHUNK,
) -> Result:
    """q (B,Q,H,D), k (B,K,H,D), v (B,K,H,V), q_map (B,Q,H,F) and k_map (B,K,H,F), q and k when left out -> o (B,Q,H,V).

    factor (H,); affine: nu = 1 - mu; joint as in `hedgehog`. The state holds what left the window, "s" (B,H,2F,V+1),
    and the last window - 1 keys, maps and values; packed or padded sequences return none.
    """
    if window < 0:
        raise refuse("lolcats", f"window {window} is negative", "give 0 (no softmax) or more")
    many = cu_seqlens is not None or (isinstance(mask, Bound) and mask.segmented)
    if state is not None and many:
        raise refuse("lolcats", "a state beside packed or padded sequences", "continue the sequences one by one")
    check_qkv("lolcats", q, k, v)
    q_map, k_map = q if q_map is None else q_map, k if k_map is None else k_map
    if any(x.ndim != 4 or x.shape[3] != k_map.shape[-1] for x in (q_map, k_map)):
        told = f"q_map has shape {tuple(q_map.shape)} and k_map {tuple(k_map.shape)}"
        raise refuse("lolcats", told, "give both (batch, tokens, heads, one width)")
    if state is not None:
        check_names("lolcats", state, ("s", "k", "k_map", "v"))
        check_cache("lolcats", {name: state[name] for name in ("k", "k_map", "v")}, {"k": k, "k_map": k_map, "v": v})
        heads, wide = max(x.shape[2] for x in (q, k, v)), torch.promote_types(k_map.dtype, torch.float32)
        memory = k_map.new_empty(q.shape[0], heads, 2 * k_map.shape[-1], v.shape[-1] + 1, dtype=wide)
        check_state("lolcats", {"s": state["s"]}, {"s": memory})
        k, k_map, v = (torch.cat([state[name], x], 1) for name, x in (("k", k), ("k_map", k_map), ("v", v)))
    base.check_per_head("lolcats", "factor", factor, q, k, v)
    options = {"factor": factor, "window": window, "affine": affine, "joint": joint, "block": block}
    options["memory"] = None if state is None else state["s"]
    o, memory = OP.run(
        impl, q, k, v, mask=mask, scale=scale, cu_seqlens=cu_seqlens,
        per_query={"q_map": q_map}, per_key={"k_map": k_map}, options=options,
    )  # fmt: skip
    if many:
        return o, None
    gone = max(k.shape[1] - max(window - 1, 0), 0)
    return o, {**memory, "k": k[:, gone:], "k_map": k_map[:, gone:], "v": v[:, gone:]}


def quadratic(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    causal: bool,
    scale: float,
    state: None,
    q_map: Tensor,
    k_map: Tensor,
    factor: Tensor,
    window: int,
    affine: bool,
    joint: bool,
    block: int,
    memory: Tensor | None,
) -> Result:
    """The specification: both matrices of weights, each where it applies; the memory is what came before all keys."""
    dtype, q_map, k_map = q.dtype, base.two_softmaxes(q_map, joint), base.two_softmaxes(k_map, joint)
    near, far = _shares(factor.to(q_map.dtype), affine)
    q, k, values = q.to(q_map.dtype), k.to(q_map.dtype), base.with_one(v.to(q_map.dtype))
    gap = torch.arange(k.shape[1] - q.shape[1], k.shape[1], device=q.device)[:, None]
    gap = gap - torch.arange(k.shape[1], device=q.device)
    weights = near * _soft(torch.einsum("bqhd,bkhd->bhqk", q, k) * scale, (gap >= 0) & (gap < window))
    weights = weights + far * torch.einsum("bqhf,bkhf->bhqk", q_map, k_map) * ((gap >= 0) & (gap >= window))
    sums = torch.einsum("bhqk,bkhv->bqhv", weights, values)
    gone = max(k.shape[1] - max(window - 1, 0), 0)
    left = torch.einsum("bkhf,bkhv->bhfv", k_map[:, :gone], values[:, :gone])
    if memory is not None:
        sums = sums + torch.einsum("bqhf,bhfv->bqhv", q_map * far[:, 0, 0][:, None], memory)
        left = left + memory
    return base.divided(sums).to(dtype), {"s": left}


def chunk(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    causal: bool,
    scale: float,
    state: None,
    q_map: Tensor,
    k_map: Tensor,
    factor: Tensor,
    window: int,
    affine: bool,
    joint: bool,
    block: int,
    memory: Tensor | None,
) -> Result:
    """Strips of queries, each with the keys from one window before it; older keys are in the sum before the strip."""
    dtype, q_map, k_map = q.dtype, base.two_softmaxes(q_map, joint), base.two_softmaxes(k_map, joint)
    near, far = (x[:, None] for x in _shares(factor.to(q_map.dtype), affine))
    q, k, values = q.to(q_map.dtype), k.to(q_map.dtype), base.with_one(v.to(q_map.dtype))
    q, k, values, q_map, k_map = (x.transpose(1, 2) for x in (q, k, values, q_map, k_map))
    length, back = q.shape[2], max(window - 1, 0)
    gone = max(k.shape[2] - length - back, 0)
    old = k_map[:, :, :gone].mT @ values[:, :, :gone]
    memory = old if memory is None else old + memory
    # so that exactly `back` keys, real ones or zeros, stand before the key of the first query
    missing = back + length - (k.shape[2] - gone)
    size = max(1, min(block, length))
    fill = -length % size
    k, values, k_map = (pad(x[:, :, gone:], (0, 0, missing, fill)) for x in (k, values, k_map))
    q, q_map = (pad(x, (0, 0, 0, fill)).unflatten(2, (-1, size)) for x in (q, q_map))

    own, width = torch.arange(size, device=q.device)[:, None], back + size
    column = torch.arange(width, device=q.device)
    gap = back + own - column
    real = (torch.arange(q.shape[2], device=q.device)[:, None, None] * size + column) >= missing
    strips_k, strips_map, strips_v = (x.unfold(2, width, size) for x in (k, k_map, values))
    weights = near * _soft(q @ strips_k * scale, (gap >= 0) & (gap < window) & real)
    weights = weights + far * (q_map @ strips_map) * ((gap >= 0) & (gap >= window))
    # keys that leave a strip; those of the last window are not gone yet
    leaving = [pad(x[:, :, :length], (0, 0, 0, fill)).unflatten(2, (-1, size)) for x in (k_map, values)]
    written = leaving[0].mT @ leaving[1]
    after = memory[:, :, None] + written.cumsum(2)
    before = torch.cat([memory[:, :, None], after[:, :, :-1]], 2)
    sums = weights @ strips_v.mT + far * (q_map @ before)
    return base.divided(sums.flatten(2, 3).transpose(1, 2)[:, :length]).to(dtype), {"s": after[:, :, -1]}


def _shares(factor: Tensor, affine: bool) -> tuple[Tensor, Tensor]:
    near = factor.sigmoid()[:, None, None]
    return near, 1 - near if affine else torch.ones_like(near)


def _soft(scores: Tensor, inside: Tensor) -> Tensor:
    """exp(score - largest score), inside; zero outside, also where nothing is inside."""
    scores = scores.masked_fill(~inside, -torch.inf)
    largest = scores.amax(-1, keepdim=True)
    return torch.exp(scores - largest.masked_fill(largest == -torch.inf, 0))


def cost(shape: Shape, window: int = 64) -> Cost:
    rows = shape.batch * shape.heads * shape.queries
    through = base.cost()(shape)
    near = 2 * (window + base.CHUNK) * (shape.width + shape.value_width)
    features = 4 * 2 * shape.width * (shape.value_width + 1)
    return Cost(rows * (near + features), 2 * through.bytes, rows * (window + base.CHUNK + 4 * shape.width))


def example(sizes: Sizes) -> Example:
    """A window that is shorter than the sequence, and maps of another width."""
    return Example(
        per_query={"q_map": sizes.randn(sizes.batch, sizes.queries, sizes.heads, 3)},
        per_key={"k_map": sizes.randn(sizes.batch, sizes.keys, sizes.key_heads, 3)},
        parameters={"factor": sizes.randn(sizes.heads)},
        options={"window": 4, "block": 3},
    )


def no_window(sizes: Sizes) -> Example:
    return Example(parameters={"factor": sizes.randn(sizes.heads)}, options={"window": 0, "block": 5, "joint": True})


def wide_window(sizes: Sizes) -> Example:
    return Example(parameters={"factor": sizes.randn(sizes.heads)}, options={"affine": True})


OP = Op(
    name="lolcats",
    impls={"reference": Impl(quadratic), "chunk": Impl(chunk)},
    auto=("chunk",),
    patterns=frozenset({"CS", "CC"}),
    cache=True,
    cost=cost,
    # NEAR is 0 in the window, else minus infinity; OLD is 1 for keys before it; D, F, FQ as in hedgehog, of the maps
    cascade="""
        QK[m,p]    = Q[e,p] * K[e,m]
        B[m,p]     = QK[m,p] + NEAR[m,p]
        GM[p]      = max(B[m,p])
        SN[m,p]    = exp(B[m,p] - GM[p])
        SD[p]      = sum(SN[m,p])
        AV[f,p]    = SN[m,p] * V[f,m]
        X[h,g,m]   = D[h] * KM[g,m]
        M[h,m]     = max(X[h,g,m])
        E[h,g,m]   = exp(X[h,g,m] - M[h,m])
        EB[h,m]    = sum(E[h,g,m])
        F[h,g,m]   = E[h,g,m] / EB[h,m]
        S[h,g,f,p] = OLD[m,p] * F[h,g,m] * V[f,m]
        Z[h,g,p]   = OLD[m,p] * F[h,g,m]
        Y[f,p]     = MU * AV[f,p] + FQ[h,g,p] * S[h,g,f,p]
        C[p]       = MU * SD[p] + FQ[h,g,p] * Z[h,g,p]
        O[f,p]     = Y[f,p] / C[p]
    """,
    example=example,
    variants={"no window": no_window, "wide window": wide_window},
)
