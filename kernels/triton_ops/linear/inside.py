"""What the tokens of one chunk do for each other and with the state before the chunk: outputs and gradients.

Parallel over chunks. Every product of a query and a key of a chunk has the decay between the two; with vectors that
does not factor, so there vector.py leaves these products in `a` (N,H,C), together with keys and queries that fade to
the ends of the chunk, and takes the gradients from here.
"""

from __future__ import annotations

import triton
import triton.language as tl

from gnomon.kernels.triton_ops.linear.tiles import (
    from_start,
    gate_gradients,
    log_decays,
    pair_decays,
    rows,
    store,
    tile,
    to_end,
    tokens_of,
)


@triton.jit
def _causal(x, CHUNK: tl.constexpr):
    lane = tl.arange(0, CHUNK)
    return tl.where(lane[:, None] >= lane[None, :], x, 0.0)


@triton.jit
def outputs(q, k, v, g, a, s, o, starts, stops, scale, length, heads,
            K: tl.constexpr, V: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_V: tl.constexpr, CHUNK: tl.constexpr,
            DECAY: tl.constexpr, PACKED: tl.constexpr, PRECISION: tl.constexpr, ACC: tl.constexpr):  # fmt: skip
    tiles: tl.constexpr = (V + BLOCK_V - 1) // BLOCK_V
    number, column = tl.program_id(0) // tiles, tl.program_id(0) % tiles * BLOCK_V
    chunk, h = number // heads, number % heads
    place, real, _ = tokens_of(chunk, h, length, heads, starts, stops, CHUNK, PACKED)
    acc = tl.zeros((CHUNK, BLOCK_V), ACC)
    inside = tl.zeros((CHUNK, CHUNK), ACC)
    for at_k in range(0, K, BLOCK_K):
        queries = tile(q, place, real, at_k, K, BLOCK_K)
        if DECAY != "vector":
            keys = tile(k, place, real, at_k, K, BLOCK_K)
            inside += tl.dot(queries, tl.trans(keys), input_precision=PRECISION)
        at, there = rows(number, at_k, K, BLOCK_K)
        acc += tl.dot(queries, tile(s, at, there, column, V, BLOCK_V), input_precision=PRECISION)
    values = tile(v, place, real, column, V, BLOCK_V)
    if DECAY == "scalar":
        gate = log_decays(tl.load(g + place, mask=real, other=0).to(ACC))
        acc *= from_start(gate)[:, None]
        inside *= pair_decays(gate, CHUNK)
    if DECAY == "vector":
        weights = tile(a, place, real, 0, CHUNK, CHUNK)
    else:
        weights = _causal(inside, CHUNK).to(values.dtype)
    acc += tl.dot(weights, values, input_precision=PRECISION)
    store(o, acc * scale, place, real, column, V, BLOCK_V)


@triton.jit
def value_gradients(q, k, g, a, do, ds, dv, starts, stops, scale, length, heads,
                    K: tl.constexpr, V: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_V: tl.constexpr,
                    CHUNK: tl.constexpr, DECAY: tl.constexpr, DELTA: tl.constexpr, PACKED: tl.constexpr,
                    PRECISION: tl.constexpr, ACC: tl.constexpr):  # fmt: skip
    """Of what the tokens write: all of it; with DELTA what comes from inside the chunk, before ds is known."""
    tiles: tl.constexpr = (V + BLOCK_V - 1) // BLOCK_V
    number, column = tl.program_id(0) // tiles, tl.program_id(0) % tiles * BLOCK_V
    chunk, h = number // heads, number % heads
    place, real, _ = tokens_of(chunk, h, length, heads, starts, stops, CHUNK, PACKED)
    acc = tl.zeros((CHUNK, BLOCK_V), ACC)
    inside = tl.zeros((CHUNK, CHUNK), ACC)
    if DECAY != "vector" or not DELTA:
        for at_k in range(0, K, BLOCK_K):
            keys = tile(k, place, real, at_k, K, BLOCK_K)
            if DECAY != "vector":
                queries = tile(q, place, real, at_k, K, BLOCK_K)
                inside += tl.dot(queries, tl.trans(keys), input_precision=PRECISION)
            if not DELTA:
                at, there = rows(number, at_k, K, BLOCK_K)
                acc += tl.dot(keys, tile(ds, at, there, column, V, BLOCK_V), input_precision=PRECISION)
    dout = tile(do, place, real, column, V, BLOCK_V)
    if DECAY == "scalar":
        gate = log_decays(tl.load(g + place, mask=real, other=0).to(ACC))
        acc *= to_end(gate, CHUNK)[:, None]
        inside *= pair_decays(gate, CHUNK)
    if DECAY == "vector":
        weights = tile(a, place, real, 0, CHUNK, CHUNK)
    else:
        weights = _causal(inside, CHUNK).to(dout.dtype)
    acc += scale * tl.dot(tl.trans(weights), dout, input_precision=PRECISION)
    store(dv, acc, place, real, column, V, BLOCK_V)


@triton.jit
def key_gradients(q, k, v, g, carry, do, dv, s, ds, dq, dk, dw, da, dg, dcarry, starts, stops, scale, length, heads,
                  tokens, K: tl.constexpr, V: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_V: tl.constexpr,
                  CHUNK: tl.constexpr, DECAY: tl.constexpr, DELTA: tl.constexpr, GATES: tl.constexpr,
                  PACKED: tl.constexpr, PRECISION: tl.constexpr, ACC: tl.constexpr):  # fmt: skip
    """Of queries, keys and w, and with GATES of g, one part (tiles,N,H) per tile of keys; v is what the chunk wrote.

    With vectors: of the queries and keys that fade to the ends of the chunk, of `a`, and of the log of `carry`.
    """
    tiles: tl.constexpr = (K + BLOCK_K - 1) // BLOCK_K
    number, part = tl.program_id(0) // tiles, tl.program_id(0) % tiles
    chunk, h, column = number // heads, number % heads, part * BLOCK_K
    place, real, _ = tokens_of(chunk, h, length, heads, starts, stops, CHUNK, PACKED)
    dweights = tl.zeros((CHUNK, CHUNK), ACC)
    dqueries = tl.zeros((CHUNK, BLOCK_K), ACC)
    dkeys = tl.zeros((CHUNK, BLOCK_K), ACC)
    derase = tl.zeros((CHUNK, BLOCK_K), ACC)
    kept = tl.zeros((BLOCK_K,), ACC)
    at, there = rows(number, column, K, BLOCK_K)
    for at_v in range(0, V, BLOCK_V):
        dout = tile(do, place, real, at_v, V, BLOCK_V)
        values = tile(v, place, real, at_v, V, BLOCK_V)
        state = tile(s, at, there, at_v, V, BLOCK_V)
        dstate = tile(ds, at, there, at_v, V, BLOCK_V)
        dweights += tl.dot(dout, tl.trans(values), input_precision=PRECISION)
        dqueries += tl.dot(dout, tl.trans(state), input_precision=PRECISION)
        dkeys += tl.dot(values, tl.trans(dstate), input_precision=PRECISION)
        if DELTA:
            change = tile(dv, place, real, at_v, V, BLOCK_V)
            derase -= tl.dot(change, tl.trans(state), input_precision=PRECISION)
        if GATES:
            kept += tl.sum(state.to(ACC) * dstate.to(ACC), 1)
    if DELTA:
        store(dw, derase, place, real, column, K, BLOCK_K)
    dweights = _causal(dweights, CHUNK) * scale
    dqueries *= scale
    if DECAY == "vector":
        if part == 0:
            store(da, dweights, place, real, 0, CHUNK, CHUNK)
        lane = column + tl.arange(0, BLOCK_K)
        left = tl.load(carry + number.to(tl.int64) * K + lane, mask=lane < K, other=0)
        tl.store(dcarry + number.to(tl.int64) * K + lane, kept * left, mask=lane < K)
    else:
        queries = tile(q, place, real, column, K, BLOCK_K)
        keys = tile(k, place, real, column, K, BLOCK_K)
        if DECAY == "scalar":
            gate = log_decays(tl.load(g + place, mask=real, other=0).to(ACC))
            dweights *= pair_decays(gate, CHUNK)
            dqueries *= from_start(gate)[:, None]
            dkeys *= to_end(gate, CHUNK)[:, None]
        if GATES:
            lane = tl.arange(0, CHUNK)
            pairs = dweights * tl.dot(queries, tl.trans(keys), input_precision=PRECISION)
            dgate = gate_gradients(pairs, tl.sum(queries.to(ACC) * dqueries, 1), CHUNK)
            ahead = tl.sum(keys.to(ACC) * dkeys, 1)
            dgate += tl.sum(tl.where(lane[:, None] > lane[None, :], ahead[None, :], 0.0), 1)
            dgate += tl.exp2(tl.sum(gate, 0)) * tl.sum(kept, 0)
            tl.store(dg + part.to(tl.int64) * tokens * heads + place, dgate, mask=real)
        dqueries += tl.dot(dweights.to(keys.dtype), keys, input_precision=PRECISION)
        dkeys += tl.dot(tl.trans(dweights.to(queries.dtype)), queries, input_precision=PRECISION)
    store(dq, dqueries, place, real, column, K, BLOCK_K)
    store(dk, dkeys, place, real, column, K, BLOCK_K)
