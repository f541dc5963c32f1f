"""The walk from chunk to chunk: the states of the gated delta recurrence, and from the end their gradients.

One program per tile of a state and sequence and head; the delta rule needs all rows of a state at once. The state
that walks is of the accumulator's type; the copies it leaves are what the products of the other kernels take.

DECAY: none; scalar, g (N,H); vector, where k fades to the end of its chunk already, q from the start, and `carry`
(chunks,H,K) is what is left of a state after a chunk.
"""

from __future__ import annotations

import triton
import triton.language as tl

from gnomon.kernels.triton_ops.linear.tiles import (
    chunks_of,
    from_start,
    log_decays,
    rows,
    store,
    tile,
    to_end,
    tokens_of,
)


@triton.jit
def _tile_of(program, K: tl.constexpr, V: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_V: tl.constexpr):
    """The sequence and head of a program, and the corner of its tile."""
    tiles_k: tl.constexpr = (K + BLOCK_K - 1) // BLOCK_K
    tiles_v: tl.constexpr = (V + BLOCK_V - 1) // BLOCK_V
    part = program % (tiles_k * tiles_v)
    return program // (tiles_k * tiles_v), part // tiles_v * BLOCK_K, part % tiles_v * BLOCK_V


@triton.jit
def _carry(carry, at, start, K: tl.constexpr, BLOCK_K: tl.constexpr):
    lane = start + tl.arange(0, BLOCK_K)
    return tl.load(carry + at.to(tl.int64) * K + lane, mask=lane < K, other=0)


@triton.jit
def _along_keys(x, state, PRECISION: tl.constexpr):
    """x @ state, over all rows of the state. Many of them, or of float32, whose numbers are split in two, would fill
    the registers: there each warp takes a piece of the rows, and the pieces are added."""
    if PRECISION == "tf32" and x.shape[1] <= 128:
        return tl.dot(x, state.to(x.dtype), input_precision=PRECISION)
    PIECES: tl.constexpr = x.shape[1] // 16
    left = tl.permute(tl.reshape(x, (x.shape[0], PIECES, 16)), (1, 0, 2))
    right = tl.reshape(state.to(x.dtype), (PIECES, 16, state.shape[1]))
    return tl.sum(tl.dot(left, right, input_precision=PRECISION), 0)


@triton.jit
def states(k, v, w, g, carry, start, s, final, written, starts, stops, first, length, heads,
           K: tl.constexpr, V: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_V: tl.constexpr, CHUNK: tl.constexpr,
           DECAY: tl.constexpr, DELTA: tl.constexpr, PACKED: tl.constexpr, PRECISION: tl.constexpr,
           ACC: tl.constexpr):  # fmt: skip
    """s (chunks,H,K,V): the state before each chunk; with DELTA also `written` = v - w s, what a chunk adds."""
    matrix, row_k, col_v = _tile_of(tl.program_id(0), K, V, BLOCK_K, BLOCK_V)
    row, h = matrix // heads, matrix % heads
    at, inside = rows(matrix, row_k, K, BLOCK_K)
    state = tile(start, at, inside, col_v, V, BLOCK_V).to(ACC)
    begin, end = chunks_of(row, length, first, CHUNK, PACKED)
    for chunk in range(begin, end):
        number = chunk * heads + h
        at, inside = rows(number, row_k, K, BLOCK_K)
        store(s, state, at, inside, col_v, V, BLOCK_V)
        place, real, _ = tokens_of(chunk, h, length, heads, starts, stops, CHUNK, PACKED)
        keys = tile(k, place, real, row_k, K, BLOCK_K)
        values = tile(v, place, real, col_v, V, BLOCK_V)
        if DELTA:
            erase = tile(w, place, real, 0, K, BLOCK_K)
            gone = _along_keys(erase, state, PRECISION)
            values = (values.to(ACC) - gone).to(values.dtype)
            store(written, values, place, real, col_v, V, BLOCK_V)
        if DECAY == "scalar":
            gate = log_decays(tl.load(g + place, mask=real, other=0).to(ACC))
            values = (values.to(ACC) * to_end(gate, CHUNK)[:, None]).to(values.dtype)
            state *= tl.exp2(tl.sum(gate, 0))
        if DECAY == "vector":
            state *= _carry(carry, number, row_k, K, BLOCK_K)[:, None]
        state += tl.dot(tl.trans(keys), values, input_precision=PRECISION)
    at, inside = rows(matrix, row_k, K, BLOCK_K)
    store(final, state, at, inside, col_v, V, BLOCK_V)


@triton.jit
def state_gradients(q, k, w, g, carry, do, dv, dfinal, ds, dstart, starts, stops, first, scale, length, heads,
                    K: tl.constexpr, V: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_V: tl.constexpr,
                    CHUNK: tl.constexpr, DECAY: tl.constexpr, DELTA: tl.constexpr, PACKED: tl.constexpr,
                    PRECISION: tl.constexpr, ACC: tl.constexpr):  # fmt: skip
    """ds (chunks,H,K,V): the gradient of the state after each chunk. With DELTA, dv, which holds what comes from inside
    the chunk, becomes the whole gradient of what the chunk wrote."""
    matrix, row_k, col_v = _tile_of(tl.program_id(0), K, V, BLOCK_K, BLOCK_V)
    row, h = matrix // heads, matrix % heads
    at, inside = rows(matrix, row_k, K, BLOCK_K)
    dstate = tile(dfinal, at, inside, col_v, V, BLOCK_V).to(ACC)
    begin, end = chunks_of(row, length, first, CHUNK, PACKED)
    for back in range(0, end - begin):
        chunk = end - 1 - back
        number = chunk * heads + h
        at, inside = rows(number, row_k, K, BLOCK_K)
        store(ds, dstate, at, inside, col_v, V, BLOCK_V)
        place, real, _ = tokens_of(chunk, h, length, heads, starts, stops, CHUNK, PACKED)
        queries = tile(q, place, real, row_k, K, BLOCK_K)
        dout = tile(do, place, real, col_v, V, BLOCK_V)
        if DECAY == "scalar":
            gate = log_decays(tl.load(g + place, mask=real, other=0).to(ACC))
            dout = (dout.to(ACC) * from_start(gate)[:, None]).to(dout.dtype)
        if DELTA:
            keys = tile(k, place, real, 0, K, BLOCK_K)
            change = _along_keys(keys, dstate, PRECISION)
            if DECAY == "scalar":
                change *= to_end(gate, CHUNK)[:, None]
            change = (change + tile(dv, place, real, col_v, V, BLOCK_V).to(ACC)).to(dout.dtype)
            store(dv, change, place, real, col_v, V, BLOCK_V)
        if DECAY == "scalar":
            dstate *= tl.exp2(tl.sum(gate, 0))
        if DECAY == "vector":
            dstate *= _carry(carry, number, row_k, K, BLOCK_K)[:, None]
        dstate += scale * tl.dot(tl.trans(queries), dout, input_precision=PRECISION)
        if DELTA:
            erase = tile(w, place, real, 0, K, BLOCK_K)
            dstate -= tl.dot(tl.trans(erase), change, input_precision=PRECISION)
    at, inside = rows(matrix, row_k, K, BLOCK_K)
    store(dstart, dstate, at, inside, col_v, V, BLOCK_V)
