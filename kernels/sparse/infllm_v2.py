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

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor
from torch.nn.functional import max_pool1d, pad, scaled_dot_product_attention

from gnomon.kernels import attend
from gnomon.kernels.by_keys import attend_by_keys
from gnomon.kernels.checks import check_cache, check_qkv, refuse
from gnomon.kernels.example import Example, Sizes
from gnomon.kernels.mask import Bound, Causal, Given, Mask
from gnomon.kernels.op import Cost, Impl, Op, Result, Shape, State, triton
from gnomon.kernels.sparse.base import twin_refuses
from gnomon.kernels.typed import typed


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
    """The blocks of each token and key head (B,Hk,Q,n), ascending, and which of the n count; no gradient."""
    places, counted = [], []
    for chosen in choices(q, means, past=past, keys=keys, scale=scale, plan=plan):
        # stable: chosen ones first, ascending
        order = chosen.to(torch.uint8).argsort(dim=-1, descending=True, stable=True)[..., : plan.top]
        places.append(order)
        counted.append(chosen.gather(-1, order))
    return torch.cat(places, 2), torch.cat(counted, 2)


@torch.no_grad()
def choices(
    q: Tensor, means: Tensor, *, past: int, keys: int, scale: float, plan: Plan, strip: int = 512
) -> Iterator[Tensor]:
    """The chosen blocks (B,Hk,s,blocks) bool of one strip of tokens after the other; no gradient."""
    blocks = -(-keys // plan.block)
    for number, here in enumerate(q.split(strip, 1)):
        first = past + number * strip
        # what is later than the whole strip is neither scored nor ranked
        last = first + here.shape[1] - 1
        windows = max((last - plan.pool + 1) // plan.stride + 1, 0)
        found = _choose(here, means[:, :windows], first, last // plan.block + 1, scale, plan)
        yield pad(found, (0, blocks - found.shape[-1]))


def _choose(q: Tensor, means: Tensor, past: int, blocks: int, scale: float, plan: Plan) -> Tensor:
    """(B,Hk,Q,blocks) bool."""
    heads = means.shape[2]
    position = torch.arange(past, past + q.shape[1], device=q.device)[:, None]
    block, own = torch.arange(blocks, device=q.device), position // plan.block
    if blocks <= plan.top:
        return (block <= own).expand(len(q), heads, -1, -1)
    # block j is touched by the windows that begin in it and by those that reach into it
    each, before = plan.block // plan.stride, plan.pool // plan.stride - 1
    window = torch.arange(-before, blocks * each, device=q.device)
    wide = torch.promote_types(q.dtype, torch.float32)
    grouped = (q.to(wide) * scale).unflatten(2, (heads, -1))
    windows = pad(means.to(wide), (0, 0, 0, 0, before, blocks * each - means.shape[1]))
    scores = torch.einsum("bqhgd,bwhd->bhgqw", grouped, windows)
    # windows from here on are later than some of the tokens
    late = before + max((past - plan.pool + 1) // plan.stride + 1, 0)
    hidden = window[late:] * plan.stride + plan.pool - 1 > position
    # finite, so that a token before the first complete window has weights to drop and no NaN
    scores[..., :before] = torch.finfo(wide).min
    scores[..., late:].masked_fill_(hidden, torch.finfo(wide).min)
    weights = scores.softmax(-1)
    weights[..., :before] = 0
    weights[..., late:].masked_fill_(hidden, 0)
    score = max_pool1d(weights.sum(2).flatten(0, 1), each + before, each).unflatten(0, (len(q), heads))
    forced = (block < plan.first) | (block >= own - plan.local)
    score = score.masked_fill_(forced, torch.inf).masked_fill_(block > own, -torch.inf)
    # the last that is chosen, and not a sort of all: of those that tie with it, the first
    least = score.topk(plan.top, sorted=True).values[..., -1:]
    chosen = (score >= least) & (block <= own)
    tied = chosen.view(torch.uint8).sum(-1, dtype=torch.int32) > plan.top
    if bool(tied.any()):
        score, least = score[tied], least[tied]
        above, equal = score > least, score == least
        chosen[tied] = above | equal & (equal.cumsum(-1) <= plan.top - above.sum(-1, keepdim=True))
    return chosen


def masked(
    q: Tensor, k: Tensor, v: Tensor, *, mask: Bound, scale: float, state: State | None, plan: Plan, means: Tensor | None
) -> Result:
    """The specification: the chosen blocks as a dense mask."""
    if k.shape[1] <= plan.dense_length:
        return dense(attend.reference, q, k, v, mask=mask, scale=scale)
    means = compress(k, plan) if means is None else means
    how = {"past": past_of(mask), "keys": k.shape[1], "scale": scale, "plan": plan}
    chosen = torch.cat(list(choices(q, means, **how)), 2).repeat_interleave(plan.block, 3)[..., : k.shape[1]]
    rule = Given(chosen.repeat_interleave(q.shape[2] // k.shape[2], 1))
    return dense(attend.reference, q, k, v, mask=mask & rule, scale=scale)


def chunk(
    q: Tensor, k: Tensor, v: Tensor, *, mask: Bound, scale: float, state: State | None, plan: Plan,
    means: Tensor | None, few: int = 128, most: int = 2**25,
) -> Result:  # fmt: skip
    """Head by head of the keys, block by block; up to `few` tokens read all that any of them chose at once.

    most  bytes that say which token chose which block, in memory at once
    """
    keys, heads = k.shape[1:3]
    if keys <= plan.dense_length:
        return dense(attend.sdpa, q, k, v, mask=mask, scale=scale)
    means, past = compress(k, plan) if means is None else means, past_of(mask)
    many, rows = max(most * plan.block // keys, 1), []
    for b, head in product(range(len(q)), range(heads)):
        group = q[b].unflatten(1, (heads, -1))[:, head]
        near, worth, mean = k[b, :, head], v[b, :, head], means[b : b + 1, :, head : head + 1]
        for number, here in enumerate(group.split(many)):
            first = past + number * many
            found = choices(here[None], mean, past=first, keys=keys, scale=scale, plan=plan)
            chosen = torch.cat([each[0, 0] for each in found])
            read = _read if len(here) <= few else attend_by_keys
            rows.append(read(here, near, worth, chosen, block=plan.block, scale=scale, past=first))
    o = torch.cat(rows).view(len(q), heads, q.shape[1], -1, v.shape[3])
    return o.transpose(1, 2).flatten(2, 3), None


def _read(q: Tensor, k: Tensor, v: Tensor, chosen: Tensor, *, block: int, scale: float, past: int) -> Tensor:
    """As `attend_by_keys`, over the blocks that any of the queries chose."""
    union = chosen.any(0).nonzero()[:, 0]
    place = (union[:, None] * block + torch.arange(block, device=q.device)).flatten()
    allowed = chosen[:, union].repeat_interleave(block, 1)
    allowed &= place <= past + torch.arange(len(q), device=q.device)[:, None]
    # what the last block lacks comes later than every query
    near, worth = (x.index_select(0, place.clamp(max=len(k) - 1)).expand(1, q.shape[1], -1, -1) for x in (k, v))
    rows = q.transpose(0, 1)[None]
    return scaled_dot_product_attention(rows, near, worth, attn_mask=allowed, scale=scale)[0].transpose(0, 1)


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
    handmade=frozenset({"chunk", "triton"}),
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
