"""Decays by channel: products of queries and keys of a chunk, each channel faded by the gates between the two tokens.

A pair meets at the one halving of the chunk that parts it: the key fades up to the middle, the query from the middle
on. So a chunk of C tokens takes log2 C products of matrices, of which each keeps the pairs that it parts. The sums of
gates from the start of a token's block and to its end grow with the blocks: one twice as large adds the whole of the
other half. `levels` is log2 C, at run time, so that the loops over it stay loops: unrolled, they spill.
"""

from __future__ import annotations

import triton
import triton.language as tl

from gnomon.kernels.triton_ops.linear.tiles import log_decays, store, tile, tokens_of


@triton.jit
def _late(level, CHUNK: tl.constexpr):
    """(C,1): which tokens are in the second half of their block of 2 << level."""
    return (tl.arange(0, CHUNK) >> level & 1 == 1)[:, None]


@triton.jit
def _parted(level, CHUNK: tl.constexpr):
    """(C,C): the pairs of a late row and an early column of one block of 2 << level."""
    lane = tl.arange(0, CHUNK)
    return (((lane[:, None] ^ lane[None, :]) >> level) == 1) & (lane[:, None] > lane[None, :])


@triton.jit
def _between(level, CHUNK: tl.constexpr):
    """(C,C): where gate l (row) is between token i (column) and the middle of the token's block of 2 << level."""
    gate, token = tl.arange(0, CHUNK)[:, None], tl.arange(0, CHUNK)[None, :]
    # from the middle to a late token, itself included, or from behind an early token to the middle
    return (((gate ^ token) >> level) == 0) & ((gate > token) ^ ((token >> level & 1) == 1))


@triton.jit
def _swap(x, level, CHUNK: tl.constexpr, WIDTH: tl.constexpr):
    """x (C,WIDTH) with the halves of each block of 2 << level rows exchanged."""
    partner = (tl.arange(0, CHUNK) ^ (1 << level))[:, None]
    return tl.gather(x, tl.broadcast_to(partner, (CHUNK, WIDTH)), 0)


@triton.jit
def _grow(since, until, level, CHUNK: tl.constexpr, WIDTH: tl.constexpr):
    """Sums of gates from the start of each token's block and to its end, for blocks twice as large."""
    late = _late(level, CHUNK)
    other = _swap(since + until, level, CHUNK, WIDTH)
    return since + tl.where(late, other, 0.0), until + tl.where(late, 0.0, other)


@triton.jit
def fade(q, k, g, qs, ks, ke, a, e, carry, starts, stops, length, heads, levels,
         K: tl.constexpr, BLOCK_K: tl.constexpr, CHUNK: tl.constexpr, DELTA: tl.constexpr,
         PACKED: tl.constexpr, PRECISION: tl.constexpr, ACC: tl.constexpr):  # fmt: skip
    """a (N,H,C), products of queries and keys; qs, q that fades from the start of the chunk; ke, k that fades to its
    end; carry (chunks,H,K), what is left after it. With DELTA e, products of keys; ks, k that fades from the start."""
    number = tl.program_id(0)
    chunk, h = number // heads, number % heads
    place, real, _ = tokens_of(chunk, h, length, heads, starts, stops, CHUNK, PACKED)
    lane = tl.arange(0, CHUNK)
    products = tl.zeros((CHUNK, CHUNK), ACC)
    among_keys = tl.zeros((CHUNK, CHUNK), ACC)
    for at_k in tl.range(0, K, BLOCK_K, num_stages=1):
        queries = tile(q, place, real, at_k, K, BLOCK_K).to(ACC)
        keys = tile(k, place, real, at_k, K, BLOCK_K).to(ACC)
        since = log_decays(tile(g, place, real, at_k, K, BLOCK_K).to(ACC))
        until = tl.zeros((CHUNK, BLOCK_K), ACC)
        products += tl.where(lane[:, None] == lane[None, :], tl.sum(queries * keys, 1)[:, None], 0.0)
        for level in tl.range(0, levels, num_stages=1):
            parted = _parted(level, CHUNK)
            decay = tl.exp2(tl.where(_late(level, CHUNK), since, until))
            late, early = (queries * decay).to(q.dtype.element_ty), (keys * decay).to(k.dtype.element_ty)
            products += tl.where(parted, tl.dot(late, tl.trans(early), input_precision=PRECISION), 0.0)
            if DELTA:
                among_keys += tl.where(parted, tl.dot(early, tl.trans(early), input_precision=PRECISION), 0.0)
            since, until = _grow(since, until, level, CHUNK, BLOCK_K)
        store(qs, queries * tl.exp2(since), place, real, at_k, K, BLOCK_K)
        if DELTA:
            store(ks, keys * tl.exp2(since), place, real, at_k, K, BLOCK_K)
        store(ke, keys * tl.exp2(until), place, real, at_k, K, BLOCK_K)
        column = at_k + tl.arange(0, BLOCK_K)
        # the two sums of any token make that of the chunk
        whole = tl.max(since + until, 0)
        tl.store(carry + number.to(tl.int64) * K + column, tl.exp2(whole), mask=column < K)
    store(a, products, place, real, 0, CHUNK, CHUNK)
    if DELTA:
        store(e, among_keys, place, real, 0, CHUNK, CHUNK)


@triton.jit
def fade_gradients(q, k, g, da, de, dqs, dks, dke, dcarry, dq, dk, dg, starts, stops, length, heads,
                   levels, K: tl.constexpr, BLOCK_K: tl.constexpr, CHUNK: tl.constexpr, DELTA: tl.constexpr,
                   PACKED: tl.constexpr, PRECISION: tl.constexpr, ACC: tl.constexpr):  # fmt: skip
    """Of q, k and g, from those of all that `fade` makes."""
    tiles: tl.constexpr = (K + BLOCK_K - 1) // BLOCK_K
    number, column = tl.program_id(0) // tiles, tl.program_id(0) % tiles * BLOCK_K
    chunk, h = number // heads, number % heads
    place, real, _ = tokens_of(chunk, h, length, heads, starts, stops, CHUNK, PACKED)
    lane = tl.arange(0, CHUNK)
    queries = tile(q, place, real, column, K, BLOCK_K).to(ACC)
    keys = tile(k, place, real, column, K, BLOCK_K).to(ACC)
    since = log_decays(tile(g, place, real, column, K, BLOCK_K).to(ACC))
    until = tl.zeros((CHUNK, BLOCK_K), ACC)
    dproducts = tile(da, place, real, 0, CHUNK, CHUNK)
    own = tl.sum(tl.where(lane[:, None] == lane[None, :], dproducts.to(ACC), 0.0), 1)[:, None]
    dqueries, dkeys = own * keys, own * queries
    dgate = tl.zeros((CHUNK, BLOCK_K), ACC)
    for level in tl.range(0, levels, num_stages=1):
        parted = _parted(level, CHUNK)
        decay = tl.exp2(tl.where(_late(level, CHUNK), since, until))
        late, early = (queries * decay).to(q.dtype.element_ty), (keys * decay).to(k.dtype.element_ty)
        met = tl.where(parted, dproducts, 0.0).to(k.dtype.element_ty)
        pulled_q = tl.dot(met, early, input_precision=PRECISION) * decay
        pulled_k = tl.dot(tl.trans(met), late, input_precision=PRECISION) * decay
        if DELTA:
            met = tl.where(parted, tile(de, place, real, 0, CHUNK, CHUNK), 0.0).to(k.dtype.element_ty)
            pulled_k += tl.dot(met + tl.trans(met), early, input_precision=PRECISION) * decay
        dqueries += pulled_q
        dkeys += pulled_k
        # a late token is there as a query and, with DELTA, as the later of two keys; an early one as a key
        moved = queries * pulled_q + keys * pulled_k
        passed = tl.where(_between(level, CHUNK), 1.0, 0.0).to(ACC)
        dgate += tl.dot(passed, moved, input_precision=PRECISION)
        since, until = _grow(since, until, level, CHUNK, BLOCK_K)
    pulled_q = tile(dqs, place, real, column, K, BLOCK_K).to(ACC) * tl.exp2(since)
    pulled_k = tile(dke, place, real, column, K, BLOCK_K).to(ACC) * tl.exp2(until)
    dqueries += pulled_q
    dkeys += pulled_k
    dsince, duntil = queries * pulled_q, keys * pulled_k
    if DELTA:
        pulled_k = tile(dks, place, real, column, K, BLOCK_K).to(ACC) * tl.exp2(since)
        dkeys += pulled_k
        dsince += keys * pulled_k
    store(dq, dqueries, place, real, column, K, BLOCK_K)
    store(dk, dkeys, place, real, column, K, BLOCK_K)
    dgate += tl.cumsum(dsince, 0, reverse=True) + tl.cumsum(duntil, 0) - duntil
    lane = column + tl.arange(0, BLOCK_K)
    dcarried = tl.load(dcarry + number.to(tl.int64) * K + lane, mask=lane < K, other=0)
    store(dg, dgate + dcarried[None, :], place, real, column, K, BLOCK_K)
