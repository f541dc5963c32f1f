"""What the kernels of the gated delta recurrence share: where a chunk lies, tiles of it, and its decays.

Tokens of all sequences stand in one row: q (N,H,K), v (N,H,V). A chunk never crosses the end of its sequence.

Sums of log decays are only made of the terms they need, never as differences of longer sums, so that no exponent is
positive and no decay too strong: `pair_decays` for scalars, `fade` of vector.py for vectors.
"""

from __future__ import annotations

import triton
import triton.language as tl

LOWEST = tl.constexpr(-1e30)
LOG2E = tl.constexpr(1.4426950408889634)
FINE = tl.constexpr(16)


@triton.jit
def tokens_of(chunk, h, length, heads, starts, stops, CHUNK: tl.constexpr, PACKED: tl.constexpr):
    """Where the tokens of a chunk stand in (N,H), whether they are tokens, and whether the next one is of the chunk."""
    if PACKED:
        start, stop = tl.load(starts + chunk), tl.load(stops + chunk)
    else:
        per = tl.cdiv(length, CHUNK)
        row = chunk // per
        start, stop = row * length + (chunk - row * per) * CHUNK, (row + 1) * length
    lane = tl.arange(0, CHUNK)
    token = start + lane
    return token.to(tl.int64) * heads + h, token < stop, (token + 1 < stop) & (lane + 1 < CHUNK)


@triton.jit
def chunks_of(row, length, first, CHUNK: tl.constexpr, PACKED: tl.constexpr):
    """The first chunk of a sequence, and the first one after it."""
    if PACKED:
        return tl.load(first + row), tl.load(first + row + 1)
    else:
        per = tl.cdiv(length, CHUNK)
        return row * per, (row + 1) * per


@triton.jit
def tile(x, place, real, start, WIDTH: tl.constexpr, LANES: tl.constexpr):
    """(rows, LANES): columns from `start` on of the rows of x (.,WIDTH) at `place`, zero where there are none."""
    lane = start + tl.arange(0, LANES)
    where = real[:, None]
    if WIDTH % LANES != 0:
        where = where & (lane < WIDTH)[None, :]
    return tl.load(x + place[:, None] * WIDTH + lane[None, :], mask=where, other=0)


@triton.jit
def store(x, value, place, real, start, WIDTH: tl.constexpr, LANES: tl.constexpr):
    lane = start + tl.arange(0, LANES)
    where = real[:, None]
    if WIDTH % LANES != 0:
        where = where & (lane < WIDTH)[None, :]
    tl.store(x + place[:, None] * WIDTH + lane[None, :], value.to(x.dtype.element_ty), mask=where)


@triton.jit
def rows(index, start, HEIGHT: tl.constexpr, LANES: tl.constexpr):
    """The place and reality of rows of matrix number `index` in (.,HEIGHT,width), for `tile` and `store`."""
    lane = start + tl.arange(0, LANES)
    return index.to(tl.int64) * HEIGHT + lane, lane < HEIGHT


@triton.jit
def log_decays(g):
    """To the base of 2; -inf as a number that forgets as well and survives sums and products with zero."""
    return tl.where(g < LOWEST, LOWEST, g) * LOG2E


@triton.jit
def pair_decays(g, CHUNK: tl.constexpr):
    """(C,C): exp2(g_{j+1} + ... + g_i) where j <= i; one elsewhere. g (C,)."""
    lane = tl.arange(0, CHUNK)
    return tl.exp2(tl.cumsum(tl.where(lane[:, None] > lane[None, :], g[:, None], 0.0), 0))


@triton.jit
def from_start(g):
    return tl.exp2(tl.cumsum(g, 0))


@triton.jit
def to_end(g, CHUNK: tl.constexpr):
    """exp2 of the sum of all gates after each token."""
    lane = tl.arange(0, CHUNK)
    return tl.exp2(tl.sum(tl.where(lane[None, :] > lane[:, None], g[None, :], 0.0), 1))


@triton.jit
def gate_gradients(pairs, before, CHUNK: tl.constexpr):
    """(C,): of gate l, the pairs (i,j) with j < l <= i and the rows i >= l, which fade by it."""
    lane = tl.arange(0, CHUNK)
    crossing = tl.cumsum(pairs, 0, reverse=True)
    return tl.sum(tl.where(lane[:, None] > lane[None, :], crossing, 0.0), 1) + tl.cumsum(before, 0, reverse=True)
