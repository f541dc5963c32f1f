"""What the block-sparse kernels share: where a program's tile lies, and reading and writing tiles.

A block has BLOCK tokens, as the method wants; a tile has LANES of them, a power of two that the GPU holds. A long block
is several tiles, its parts; a short one leaves lanes empty.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def placed(many, heads, PARTS: tl.constexpr):
    """Which of the `many` blocks, its part, and the row and head. All programs stand on one axis: the second ends
    at 65535."""
    block, part = tl.program_id(0) // PARTS, tl.program_id(0) % PARTS
    row = block // many
    return block % many, part, row // heads, row % heads


@triton.jit
def listed(first, m, many, b, h, list_rows, list_heads, PARTS: tl.constexpr):
    """From where to where a block's entries run, counted in parts."""
    at = ((b % list_rows) * list_heads + h % list_heads) * many + m
    start, stop = tl.load(first + at), tl.load(first + at + 1)
    if PARTS > 1:
        # of entries there may be nearly as many as int32 holds
        start, stop = start.to(tl.int64) * PARTS, stop.to(tl.int64) * PARTS
    return start, stop


@triton.jit
def counted(number, PARTS: tl.constexpr):
    """Which entry and which of its parts."""
    return tl.cast(number // PARTS, tl.int32), tl.cast(number % PARTS, tl.int32)


@triton.jit
def visible(bits, entry, lane_q, lane_k, inside, token, key, keys, past,
            BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, CAUSAL: tl.constexpr, PARTIAL: tl.constexpr):  # fmt: skip
    """(rows, keys) bool of one tile."""
    if PARTIAL:
        words = tl.load(bits + entry * BLOCK_Q + lane_q, mask=lane_q < BLOCK_Q, other=0)
        seen = ((words[:, None] >> lane_k[None, :].to(tl.int64)) & 1) != 0
    else:
        seen = inside[:, None] & ((lane_k < BLOCK_K) & (key < keys))[None, :]
        if CAUSAL:
            seen = seen & (key[None, :] <= token[:, None] + past)
    return seen


@triton.jit
def rows(b, h, m, part, queries, heads, BLOCK_Q: tl.constexpr, LANES_Q: tl.constexpr, GROUP: tl.constexpr):
    """Lanes, whether they are rows, their tokens and where they stand in (B,T,H,...)."""
    lane = part * LANES_Q + tl.arange(0, LANES_Q)
    row = m * BLOCK_Q + lane
    inside = (lane < BLOCK_Q) & (row < queries * GROUP)
    token = row // GROUP
    place = (b.to(tl.int64) * queries + token) * heads * GROUP + h * GROUP + row % GROUP
    return lane, inside, token, place


@triton.jit
def columns(b, h, j, part, keys, heads, BLOCK_K: tl.constexpr, LANES_K: tl.constexpr):
    lane = part * LANES_K + tl.arange(0, LANES_K)
    key = j * BLOCK_K + lane
    place = (b.to(tl.int64) * keys + key) * heads + h
    return lane, key, (lane < BLOCK_K) & (key < keys), place


@triton.jit
def tile(x, place, inside, WIDTH: tl.constexpr, LANES: tl.constexpr, start=0):
    """LANES columns from `start` on of the rows of x at `place`, padded with zeros."""
    lane = start + tl.arange(0, LANES)
    return tl.load(x + place[:, None] * WIDTH + lane[None, :], mask=inside[:, None] & (lane < WIDTH)[None, :], other=0)


@triton.jit
def store(x, value, place, inside, WIDTH: tl.constexpr, LANES: tl.constexpr, start=0):
    lane = start + tl.arange(0, LANES)
    where = inside[:, None] & (lane < WIDTH)[None, :]
    tl.store(x + place[:, None] * WIDTH + lane[None, :], value.to(x.dtype.element_ty), mask=where)
