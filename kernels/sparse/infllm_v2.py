"""InfLLM-v2: each token over the blocks of keys that score best for its group of heads, the first and the local ones.

Paper:   InfLLM-V2: Dense-Sparse Switchable Attention for Seamless Short-to-Long Adaptation. arXiv:2509.24663
Rule:    keys are averaged in windows; softmax(q window) over the complete windows before the query, summed over the
         query heads of a key head; a block scores the largest of the windows that touch it; causal softmax over the
         top blocks, among which the first and the local ones always are
Where:   long-context decoders with grouped heads, prefill and decoding; no parameters, so the weights are those of
         dense
Differs: blocks of the future are never chosen (they cannot fill places that tie at zero); the local blocks are the
         query's own and `local` before it, as in the released kernel
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import max_pool1d, pad, scaled_dot_product_attention
from torch.utils.checkpoint import checkpoint

from gnomon.kernels import attend
from gnomon.kernels.checks import check_cache, check_qkv, refuse
from gnomon.kernels.example import Example, Sizes
from gnomon.kernels.mask import Bound, Causal, Given, Mask
from gnomon.kernels.op import Cost, Impl, Op, Result, Shape, State, triton
from gnomon.kernels.sparse.base import twin_refuses
from gnomon.kernels.typed import typed

STRIP = 512
"""Queries whose scores are in memory at once."""


@dataclass(frozen=True)
class Plan:
    """block, pool and stride in tokens; top, local and first in blocks."""

    top: int
    block: int
    local: int
    first: int
    pool: int
    stride: int
    dense_length: int


@typed
def infllm_v2(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    top: int = 64,
    block: int = 64,
    local: int = 32,
    first: int = 1,
    pool: int = 32,
    stride: int = 16,
    dense_length: int = 8192,
    mask: Mask = None,
    scale: float | None = None,
    state: State | None = None,
    cu_seqlens: Tensor | None = None,
    impl: str = "auto",
) -> Result:
    """q (B,Q,H,D), k (B,K,Hk,D), v (B,K,Hk,V) -> o (B,Q,H,V) and the keys, values and window means so far.

    top           blocks of `block` tokens that a token sees, the forced ones among them
    local, first  forced: so many blocks before the token's own, and so many at the beginning
    pool, stride  tokens per window and from one window to the next
    dense_length  calls with at most so many keys see all of them
    """
    check_qkv("infllm_v2", q, k, v)
    if k.shape[2] != v.shape[2] or k.shape[2] > q.shape[2]:
        heads = f"{q.shape[2]}, {k.shape[2]} and {v.shape[2]} heads of q, k and v"
        raise refuse("infllm_v2", heads, "give k and v the same number, at most that of q")
    plan = Plan(top, block, local, first, pool, stride, dense_length)
    if min(block, pool, stride) < 1 or block % stride or pool % stride or min(local, first) < 0:
        raise refuse("infllm_v2", f"{plan} does not fit", "let stride divide block and pool, and nothing be negative")
    if top < first + local + 1:
        raise refuse("infllm_v2", f"top {top} is less than the forced blocks", f"use {first + local + 1} or more")
    means = None
    if state is not None:
        if cu_seqlens is not None:
            raise refuse("infllm_v2", "a state beside cu_seqlens", "continue the sequences one by one")
        check_cache("infllm_v2", state, {"k": k, "v": v, "means": k})
        k, v, means = torch.cat([state["k"], k], 1), torch.cat([state["v"], v], 1), state["means"]
    plain = isinstance(mask, Causal) and cu_seqlens is None
    means = compress(k, plan, means) if plain else None
    options = {"plan": plan, "means": means}
    o, _ = OP.run(impl, q, k, v, mask=mask, scale=scale, cu_seqlens=cu_seqlens, options=options)
    return o, {"k": k, "v": v, "means": means} if plain else None


def compress(k: Tensor, plan: Plan, known: Tensor | None = None) -> Tensor:
    """The means of the complete windows (B,W,Hk,D), after those that are known; no gradient."""
    with torch.no_grad():
        done = 0 if known is None else known.shape[1]
        start = done * plan.stride
        if k.shape[1] - start < plan.pool:
            return k.new_zeros(k.shape[0], 0, *k.shape[2:]) if known is None else known
        wide = torch.float64 if k.dtype == torch.float64 else torch.float32
        means = k[:, start:].to(wide).unfold(1, plan.pool, plan.stride).mean(-1).to(k.dtype)
        return means if known is None else torch.cat([known, means], 1)


def select(q: Tensor, means: Tensor, *, past: int, keys: int, scale: float, plan: Plan) -> tuple[Tensor, Tensor]:
    """The blocks of each token and key head (B,Hk,Q,n), best first, and which of the n count; no gradient."""
    with torch.no_grad():
        strips = [
            _select(strip, means, past + number * STRIP, keys, scale, plan)
            for number, strip in enumerate(q.split(STRIP, 1))
        ]
        return torch.cat([index for index, _ in strips], 2), torch.cat([listed for _, listed in strips], 2)


def _select(q: Tensor, means: Tensor, past: int, keys: int, scale: float, plan: Plan) -> tuple[Tensor, Tensor]:
    wide = torch.float64 if q.dtype == torch.float64 else torch.float32
    heads, windows, blocks = means.shape[2], means.shape[1], -(-keys // plan.block)
    position = torch.arange(past, past + q.shape[1], device=q.device)
    window, block = torch.arange(windows, device=q.device), torch.arange(blocks, device=q.device)
    scores = torch.einsum("bqhgd,bwhd->bhgqw", q.to(wide).unflatten(2, (heads, -1)), means.to(wide)) * scale
    complete = window * plan.stride + plan.pool - 1 <= position[:, None]
    # finite, so that a query before the first complete window has weights to drop and no NaN
    weights = scores.masked_fill(~complete, torch.finfo(wide).min).softmax(-1).masked_fill(~complete, 0).sum(2)
    # block j is touched by the windows that begin in it and by those that reach into it
    each, before = plan.block // plan.stride, plan.pool // plan.stride - 1
    weights = pad(weights, (before, blocks * each - windows)).flatten(0, 1)
    score = max_pool1d(weights, each + before, each).unflatten(0, (q.shape[0], heads))
    own = position[:, None] // plan.block
    forced = (block < plan.first) | (block >= own - plan.local)
    score = score.masked_fill(forced, torch.inf).masked_fill(block > own, -torch.inf)
    # stable: of equal scores the first, everywhere
    score, index = score.sort(dim=-1, descending=True, stable=True)
    return index[..., : plan.top], score[..., : plan.top] > -torch.inf


def masked(
    q: Tensor, k: Tensor, v: Tensor, *, mask: Bound, scale: float, state: State | None, plan: Plan, means: Tensor | None
) -> Result:
    """The specification: the chosen blocks as a dense mask."""
    if k.shape[1] <= plan.dense_length:
        return dense(attend.reference, q, k, v, mask=mask, scale=scale)
    means = compress(k, plan) if means is None else means
    chosen = _chosen(q, means, past_of(mask), k.shape[1], scale, plan)
    chosen = chosen.repeat_interleave(plan.block, 3)[..., : k.shape[1]]
    rule = Given(chosen.repeat_interleave(q.shape[2] // k.shape[2], 1))
    return dense(attend.reference, q, k, v, mask=mask & rule, scale=scale)


def chunk(
    q: Tensor, k: Tensor, v: Tensor, *, mask: Bound, scale: float, state: State | None, plan: Plan,
    means: Tensor | None, strip: int = 128,
) -> Result:  # fmt: skip
    """`strip` tokens at a time read the blocks that any of them chose, head by head of the keys.

    What a strip reads is gathered again in backward: kept for all of them, it would be the keys once per strip.
    """
    batch, keys, heads, _ = k.shape
    if keys <= plan.dense_length:
        return dense(attend.sdpa, q, k, v, mask=mask, scale=scale)
    means = compress(k, plan) if means is None else means
    past, outputs = past_of(mask), []
    rows = [x.transpose(1, 2).flatten(0, 1).unbind() for x in (k, v)]
    for start in range(0, q.shape[1], strip):
        here = q[:, start : start + strip]
        position = past + start + torch.arange(here.shape[1], device=q.device)
        chosen = _chosen(here, means, past + start, keys, scale, plan).flatten(0, 1)
        # the query heads of a key head are the heads of an attention of its own
        mine = here.unflatten(2, (heads, -1)).permute(0, 2, 3, 1, 4).flatten(0, 1)
        each = [
            checkpoint(_read, *row, position, plan.block, scale, use_reentrant=False, preserve_rng_state=False)
            for row in zip(mine, *rows, chosen)
        ]
        outputs.append(torch.stack(each).unflatten(0, (batch, heads)).permute(0, 3, 1, 2, 4).flatten(2, 3))
    return torch.cat(outputs, 1), None


def _read(q: Tensor, k: Tensor, v: Tensor, chosen: Tensor, position: Tensor, block: int, scale: float) -> Tensor:
    """(h,Q,V) of the queries (h,Q,D) of one key head, over the blocks of (K,D) and (K,V) that any of them chose, of
    (Q,blocks).
    """
    union = chosen.any(0).nonzero()[:, 0]
    place = (union[:, None] * block + torch.arange(block, device=q.device)).flatten()
    hidden = q.new_zeros(len(position), len(union)).masked_fill(~chosen[:, union], -torch.inf)
    hidden = hidden.repeat_interleave(block, 1)
    # ascending: what comes later than some of the queries is at the end, and behind it what the last block lacks
    late = int((place <= position[0]).sum())
    hidden[:, late:].masked_fill_(place[late:] > position[:, None], -torch.inf)
    place = place.clamp(max=len(k) - 1)
    near, worth = (x.index_select(0, place).expand(1, len(q), -1, -1) for x in (k, v))
    return scaled_dot_product_attention(q[None], near, worth, attn_mask=hidden, scale=scale)[0]


def _chosen(q: Tensor, means: Tensor, past: int, keys: int, scale: float, plan: Plan) -> Tensor:
    """(B,Hk,Q,blocks) bool."""
    index, listed = select(q, means, past=past, keys=keys, scale=scale, plan=plan)
    empty = torch.zeros(*index.shape[:3], -(-keys // plan.block), dtype=torch.bool, device=q.device)
    return empty.scatter(3, index, listed)


def dense(run: Callable[..., Result], q: Tensor, k: Tensor, v: Tensor, *, mask: Bound, scale: float) -> Result:
    k, v = (x.repeat_interleave(q.shape[2] // x.shape[2], 2) for x in (k, v))
    return run(q, k, v, mask=mask, scale=scale)


def past_of(mask: Bound) -> int:
    """How many keys come before the first query; both must stand in the order of their positions, from 0."""
    if "past" not in mask.cache:
        queries, keys = mask.q["p"], mask.k["p"]
        past = int(queries[0, 0])
        wanted = torch.arange(keys.shape[1], device=keys.device)
        mine = wanted[past : past + queries.shape[1]]
        if not (torch.equal(keys, wanted.expand_as(keys)) and torch.equal(queries, mine.expand(len(queries), -1))):
            raise refuse("infllm_v2", "keys at positions other than 0, 1, 2, ...", "pass CAUSAL, or padding with it")
        mask.cache["past"] = past
    return mask.cache["past"]


def refuses(shape: Shape, mask: Bound) -> str | None:
    return None if isinstance(mask.expr, Causal) else f"a mask of {type(mask.expr).__name__} instead of CAUSAL"


def cost(shape: Shape) -> Cost:
    """At the default sizes: scores of the windows, and 64 blocks of 64 keys per token where there are so many."""
    rows = shape.batch * shape.heads * shape.queries
    windows, seen = shape.keys / 16, min(shape.keys / 2, 4096)
    operations = rows * (2 * windows / 2 * shape.width + 2 * seen * (shape.width + shape.value_width))
    size = torch.finfo(shape.dtype).bits // 8
    tokens = shape.heads * shape.queries + shape.key_heads * shape.keys
    moved = size * shape.batch * tokens * (shape.width + shape.value_width)
    return Cost(operations, moved, rows * (windows / 2 + seen))


def _example(sizes: Sizes, **options: object) -> Example:
    small = {"top": 3, "block": 2, "local": 0, "first": 1, "pool": 2, "stride": 1, "dense_length": 0}
    return Example(options={**small, **options})


OP = Op(
    name="infllm_v2",
    impls={
        "reference": Impl(masked, refuses, grouped=True),
        "chunk": Impl(chunk, refuses, grouped=True),
        "triton": triton(
            "sparse.infllm_v2:run",
            refuses=lambda shape, mask: refuses(shape, mask) or twin_refuses(shape, mask),
            grouped=True,
        ),
    },
    auto=("triton", "chunk"),
    patterns=frozenset({"CS", "CC"}),
    masks=True,
    cache=True,
    handmade=frozenset({"triton"}),
    cost=cost,
    # two passes over the window means (m1), for their sum and for the shares, and one over the chosen keys
    cascade="""
        KC[e,m1]    = sum(K[e,m1,m0])
        QC[m1,p]    = Q[e,p] * KC[e,m1]
        RM[m1+1,p]  = max(RM[m1,p], QC[m1,p])
        RC[m1,p]    = exp(RM[m1,p] - RM[m1+1,p])
        RE[m1,p]    = exp(QC[m1,p] - RM[m1+1,p])
        RD[m1+1,p]  = RD[m1,p] * RC[m1,p] + RE[m1,p]
        CE[m1,p]    = exp(QC[m1,p] - RM[M,p])
        CP[m1,p]    = CE[m1,p] / RD[M,p]
        TOP[p]      = max(CP[m1,p])
        B[m1,p]     = max(CP[m1,p], TOP[p])
        QK[m1,m0,p] = B[m1,p] * Q[e,p] * K[e,m1,m0]
        GM[p]       = max(QK[m1,m0,p])
        SN[m1,m0,p] = exp(QK[m1,m0,p] - GM[p])
        SD[p]       = sum(SN[m1,m0,p])
        AV[f,p]     = SN[m1,m0,p] * V[f,m1,m0]
        O[f,p]      = AV[f,p] / SD[p]
    """,
    example=_example,
    variants={
        "local": lambda sizes: _example(sizes, block=4, local=1, pool=4, stride=2),
        "short": lambda sizes: _example(sizes, dense_length=100),
    },
)
