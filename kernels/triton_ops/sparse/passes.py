"""The kernels of block-sparse attention; blocks.py launches them.

forward           o and the log2 of each row's sum (lse), a tile of queries over its list
backward_rows     what belongs to rows alone: delta, and the gradients of the linear branch
backward_queries  dq, as forward
backward_keys     dk and dv, a tile of keys over the list of the blocks of queries that read it
"""

from __future__ import annotations

import triton
import triton.language as tl

from gnomon.kernels.triton_ops.sparse.tiles import columns, counted, listed, placed, rows, store, tile, visible


@triton.jit
def _forward_list(top, total, acc, q, k, v, bits, block, start, stop, b, h, lane_q, inside, token, keys, heads, past,
                  scale, D: tl.constexpr, V: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr,
                  LANES_K: tl.constexpr, LANES_D: tl.constexpr, LANES_V: tl.constexpr, CAUSAL: tl.constexpr,
                  PARTIAL: tl.constexpr, PRECISION: tl.constexpr):  # fmt: skip
    PARTS: tl.constexpr = (BLOCK_K + LANES_K - 1) // LANES_K
    for number in range(start, stop):
        entry, part = counted(number, PARTS)
        j = tl.load(block + entry)
        lane_k, key, real, place = columns(b, h, j, part, keys, heads, BLOCK_K, LANES_K)
        keys_here = tile(k, place, real, D, LANES_D)
        values = tile(v, place, real, V, LANES_V)
        seen = visible(bits, entry, lane_q, lane_k, inside, token, key, keys, past, BLOCK_Q, BLOCK_K, CAUSAL, PARTIAL)
        score = tl.dot(q, tl.trans(keys_here), input_precision=PRECISION) * scale
        score = tl.where(seen, score, -float("inf"))
        new = tl.maximum(top, tl.max(score, 1))
        # a row that has seen nothing yet keeps -inf, and -inf - -inf must not be taken
        safe = tl.where(new == -float("inf"), 0.0, new)
        weight = tl.exp2(score - safe[:, None])
        shrink = tl.exp2(top - safe)
        total = total * shrink + tl.sum(weight, 1)
        acc = acc * shrink[:, None] + tl.dot(weight.to(values.dtype), values, input_precision=PRECISION)
        top = new
    return top, total, acc


@triton.jit
def forward(q, k, v, o, lse, f, s, z, full_first, full_block, part_first, part_block, bits,
            scale, queries, keys, heads, past, many, list_rows, list_heads,
            D: tl.constexpr, V: tl.constexpr, E: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr,
            LANES_Q: tl.constexpr, LANES_K: tl.constexpr, LANES_D: tl.constexpr, LANES_V: tl.constexpr,
            LANES_E: tl.constexpr, LANES_C: tl.constexpr, GROUP: tl.constexpr, CAUSAL: tl.constexpr,
            PARTIAL: tl.constexpr, LINEAR: tl.constexpr, PRECISION: tl.constexpr, ACC: tl.constexpr):  # fmt: skip
    PARTS: tl.constexpr = (BLOCK_Q + LANES_Q - 1) // LANES_Q
    PARTS_K: tl.constexpr = (BLOCK_K + LANES_K - 1) // LANES_K
    m, part, b, h = placed(many, heads, PARTS)
    lane_q, inside, token, place = rows(b, h, m, part, queries, heads, BLOCK_Q, LANES_Q, GROUP)
    here = tile(q, place, inside, D, LANES_D)
    top = tl.full((LANES_Q,), -float("inf"), ACC)
    total = tl.zeros((LANES_Q,), ACC)
    acc = tl.zeros((LANES_Q, LANES_V), ACC)
    start, stop = listed(full_first, m, many, b, h, list_rows, list_heads, PARTS_K)
    top, total, acc = _forward_list(
        top, total, acc, here, k, v, bits, full_block, start, stop, b, h, lane_q, inside, token, keys, heads, past,
        scale, D, V, BLOCK_Q, BLOCK_K, LANES_K, LANES_D, LANES_V, CAUSAL, False, PRECISION)  # fmt: skip
    if PARTIAL:
        start, stop = listed(part_first, m, many, b, h, list_rows, list_heads, PARTS_K)
        top, total, acc = _forward_list(
            top, total, acc, here, k, v, bits, part_block, start, stop, b, h, lane_q, inside, token, keys, heads, past,
            scale, D, V, BLOCK_Q, BLOCK_K, LANES_K, LANES_D, LANES_V, CAUSAL, True, PRECISION)  # fmt: skip
    nothing = total == 0
    total = tl.where(nothing, 1.0, total)
    tl.store(lse + place, tl.where(nothing, 0.0, top + tl.log2(total)), mask=inside)
    out = acc / total[:, None]
    if LINEAR:
        where = (tl.program_id(0) // PARTS).to(tl.int64)
        below = tl.zeros((LANES_Q,), ACC)
        above = tl.zeros((LANES_Q, LANES_V), ACC)
        # features in strips: all of S at once is more than shared memory holds
        for column in tl.range(0, LANES_E, LANES_C, num_stages=1):
            feature = tile(f, place, inside, E, LANES_C, column)
            lane = column + tl.arange(0, LANES_C)
            norm = tl.load(z + where * E + lane, mask=lane < E, other=0)
            below += tl.sum(feature.to(ACC) * norm[None, :], 1)
            moment = tile(s + where * E * V, lane, lane < E, V, LANES_V)
            above += tl.dot(feature, moment.to(feature.dtype), input_precision=PRECISION)
        out += tl.where((below == 0)[:, None], 0.0, above / tl.where(below == 0, 1.0, below)[:, None])
    store(o, out, place, inside, V, LANES_V)


@triton.jit
def backward_rows(o, do, delta, f, s, z, df, ds, dz, queries, heads, many,
                  V: tl.constexpr, E: tl.constexpr, BLOCK_Q: tl.constexpr, LANES_Q: tl.constexpr, LANES_V: tl.constexpr,
                  LANES_E: tl.constexpr, LANES_C: tl.constexpr, GROUP: tl.constexpr, LINEAR: tl.constexpr,
                  PRECISION: tl.constexpr, ACC: tl.constexpr):  # fmt: skip
    """The softmax branch's sum of o * do for each row, and the gradients of the linear branch: of S and z a block has
    one, so a program takes all parts of its block."""
    m, _, b, h = placed(many, heads, 1)
    PARTS: tl.constexpr = (BLOCK_Q + LANES_Q - 1) // LANES_Q
    where = tl.program_id(0).to(tl.int64)
    lane = tl.arange(0, LANES_E)
    if LINEAR:
        norm = tl.load(z + where * E + lane, mask=lane < E, other=0)
        dnorm = tl.zeros((LANES_E,), ACC)
    for part in tl.range(0, PARTS, 1, num_stages=1):
        _lane, inside, _token, place = rows(b, h, m, part, queries, heads, BLOCK_Q, LANES_Q, GROUP)
        change = tl.zeros((LANES_Q,), ACC)
        # columns in strips: all of S and its gradient at once are more than the registers hold
        for column in tl.range(0, LANES_V, LANES_C, num_stages=1):
            dout = tile(do, place, inside, V, LANES_C, column)
            change += tl.sum(tile(o, place, inside, V, LANES_C, column).to(ACC) * dout.to(ACC), 1)
        if LINEAR:
            feature = tile(f, place, inside, E, LANES_E)
            inverse = _inverse(tl.sum(feature.to(ACC) * norm[None, :], 1))
            pulled = tl.zeros((LANES_Q, LANES_E), ACC)
            for column in tl.range(0, LANES_V, LANES_C, num_stages=1):
                dout = tile(do, place, inside, V, LANES_C, column)
                moment = tile(s + where * E * V, lane, lane < E, V, LANES_C, column).to(dout.dtype)
                pulled += tl.dot(dout, tl.trans(moment), input_precision=PRECISION)
            # do S^T serves twice: with the features it is the branch's own sum of o * do
            linear = tl.sum(pulled * feature.to(ACC), 1) * inverse
            change -= linear
            store(df, (pulled - linear[:, None] * norm[None, :]) * inverse[:, None], place, inside, E, LANES_E)
            dnorm -= tl.sum(feature.to(ACC) * (inverse * linear)[:, None], 0)
        tl.store(delta + place, change, mask=inside)
    if LINEAR:
        tl.store(dz + where * E + lane, dnorm, mask=lane < E)
        for column in tl.range(0, LANES_V, LANES_C, num_stages=1):
            dmoment = tl.zeros((LANES_E, LANES_C), ACC)
            for part in tl.range(0, PARTS, 1, num_stages=1):
                _lane, inside, _token, place = rows(b, h, m, part, queries, heads, BLOCK_Q, LANES_Q, GROUP)
                feature = tile(f, place, inside, E, LANES_E).to(ACC)
                scaled = feature * _inverse(tl.sum(feature * norm[None, :], 1))[:, None]
                dout = tile(do, place, inside, V, LANES_C, column)
                dmoment += tl.dot(tl.trans(scaled.to(dout.dtype)), dout, input_precision=PRECISION)
            store(ds + where * E * V, dmoment, lane, lane < E, V, LANES_C, column)


@triton.jit
def _inverse(x):
    """1 / x, and 0 of 0."""
    return tl.where(x == 0, 0.0, 1 / tl.where(x == 0, 1.0, x))


@triton.jit
def _dq_list(acc, q, do, level, delta, k, v, bits, block, start, stop, b, h, lane_q, inside, token, keys, heads, past,
             scale, D: tl.constexpr, V: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr,
             LANES_K: tl.constexpr, LANES_D: tl.constexpr, LANES_V: tl.constexpr, CAUSAL: tl.constexpr,
             PARTIAL: tl.constexpr, PRECISION: tl.constexpr):  # fmt: skip
    PARTS: tl.constexpr = (BLOCK_K + LANES_K - 1) // LANES_K
    for number in range(start, stop):
        entry, part = counted(number, PARTS)
        j = tl.load(block + entry)
        lane_k, key, real, place = columns(b, h, j, part, keys, heads, BLOCK_K, LANES_K)
        keys_here = tile(k, place, real, D, LANES_D)
        values = tile(v, place, real, V, LANES_V)
        seen = visible(bits, entry, lane_q, lane_k, inside, token, key, keys, past, BLOCK_Q, BLOCK_K, CAUSAL, PARTIAL)
        score = tl.dot(q, tl.trans(keys_here), input_precision=PRECISION) * scale
        weight = tl.where(seen, tl.exp2(score - level[:, None]), 0.0)
        dweight = tl.dot(do, tl.trans(values), input_precision=PRECISION)
        dscore = weight * (dweight - delta[:, None])
        acc += tl.dot(dscore.to(keys_here.dtype), keys_here, input_precision=PRECISION)
    return acc


@triton.jit
def backward_queries(q, k, v, do, lse, delta, dq, full_first, full_block, part_first, part_block, bits,
                     scale, factor, queries, keys, heads, past, many, list_rows, list_heads,
                     D: tl.constexpr, V: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr,
                     LANES_Q: tl.constexpr, LANES_K: tl.constexpr, LANES_D: tl.constexpr, LANES_V: tl.constexpr,
                     GROUP: tl.constexpr, CAUSAL: tl.constexpr, PARTIAL: tl.constexpr, PRECISION: tl.constexpr,
                     ACC: tl.constexpr):  # fmt: skip
    PARTS_K: tl.constexpr = (BLOCK_K + LANES_K - 1) // LANES_K
    m, part, b, h = placed(many, heads, (BLOCK_Q + LANES_Q - 1) // LANES_Q)
    lane_q, inside, token, place = rows(b, h, m, part, queries, heads, BLOCK_Q, LANES_Q, GROUP)
    here = tile(q, place, inside, D, LANES_D)
    dout = tile(do, place, inside, V, LANES_V)
    level = tl.load(lse + place, mask=inside, other=0)
    change = tl.load(delta + place, mask=inside, other=0)
    acc = tl.zeros((LANES_Q, LANES_D), ACC)
    start, stop = listed(full_first, m, many, b, h, list_rows, list_heads, PARTS_K)
    acc = _dq_list(
        acc, here, dout, level, change, k, v, bits, full_block, start, stop, b, h, lane_q, inside, token, keys,
        heads, past, scale, D, V, BLOCK_Q, BLOCK_K, LANES_K, LANES_D, LANES_V, CAUSAL, False, PRECISION)  # fmt: skip
    if PARTIAL:
        start, stop = listed(part_first, m, many, b, h, list_rows, list_heads, PARTS_K)
        acc = _dq_list(
            acc, here, dout, level, change, k, v, bits, part_block, start, stop, b, h, lane_q, inside, token, keys,
            heads, past, scale, D, V, BLOCK_Q, BLOCK_K, LANES_K, LANES_D, LANES_V, CAUSAL, True, PRECISION)  # fmt: skip
    store(dq, acc * factor, place, inside, D, LANES_D)


@triton.jit
def _dkv_list(dk, dv, k, v, q, do, lse, delta, bits, block, entry_of, start, stop, b, h, lane_k, key, queries, keys,
              heads, past, scale,
              D: tl.constexpr, V: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, LANES_Q: tl.constexpr,
              LANES_D: tl.constexpr, LANES_V: tl.constexpr, GROUP: tl.constexpr, CAUSAL: tl.constexpr,
              PARTIAL: tl.constexpr, PRECISION: tl.constexpr):  # fmt: skip
    PARTS: tl.constexpr = (BLOCK_Q + LANES_Q - 1) // LANES_Q
    for number in range(start, stop):
        at, part = counted(number, PARTS)
        m, entry = tl.load(block + at), tl.load(entry_of + at)
        lane_q, inside, token, place = rows(b, h, m, part, queries, heads, BLOCK_Q, LANES_Q, GROUP)
        here = tile(q, place, inside, D, LANES_D)
        dout = tile(do, place, inside, V, LANES_V)
        level = tl.load(lse + place, mask=inside, other=0)
        change = tl.load(delta + place, mask=inside, other=0)
        seen = visible(bits, entry, lane_q, lane_k, inside, token, key, keys, past, BLOCK_Q, BLOCK_K, CAUSAL, PARTIAL)
        score = tl.dot(here, tl.trans(k), input_precision=PRECISION) * scale
        weight = tl.where(seen, tl.exp2(score - level[:, None]), 0.0)
        dv += tl.dot(tl.trans(weight.to(dout.dtype)), dout, input_precision=PRECISION)
        dweight = tl.dot(dout, tl.trans(v), input_precision=PRECISION)
        dscore = weight * (dweight - change[:, None])
        dk += tl.dot(tl.trans(dscore.to(here.dtype)), here, input_precision=PRECISION)
    return dk, dv


@triton.jit
def backward_keys(q, k, v, do, lse, delta, dk, dv, full_first, full_block, full_entry, part_first, part_block,
                  part_entry, bits, scale, factor, queries, keys, heads, past, many, list_rows, list_heads,
                  D: tl.constexpr, V: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr,
                  LANES_Q: tl.constexpr, LANES_K: tl.constexpr, LANES_D: tl.constexpr, LANES_V: tl.constexpr,
                  GROUP: tl.constexpr, CAUSAL: tl.constexpr, PARTIAL: tl.constexpr, PRECISION: tl.constexpr,
                  ACC: tl.constexpr):  # fmt: skip
    PARTS_Q: tl.constexpr = (BLOCK_Q + LANES_Q - 1) // LANES_Q
    j, part, b, h = placed(many, heads, (BLOCK_K + LANES_K - 1) // LANES_K)
    lane_k, key, real, place = columns(b, h, j, part, keys, heads, BLOCK_K, LANES_K)
    keys_here = tile(k, place, real, D, LANES_D)
    values = tile(v, place, real, V, LANES_V)
    dkeys = tl.zeros((LANES_K, LANES_D), ACC)
    dvalues = tl.zeros((LANES_K, LANES_V), ACC)
    start, stop = listed(full_first, j, many, b, h, list_rows, list_heads, PARTS_Q)
    dkeys, dvalues = _dkv_list(
        dkeys, dvalues, keys_here, values, q, do, lse, delta, bits, full_block, full_entry, start, stop, b, h,
        lane_k, key, queries, keys, heads, past, scale, D, V, BLOCK_Q, BLOCK_K, LANES_Q, LANES_D, LANES_V, GROUP,
        CAUSAL, False, PRECISION)  # fmt: skip
    if PARTIAL:
        start, stop = listed(part_first, j, many, b, h, list_rows, list_heads, PARTS_Q)
        dkeys, dvalues = _dkv_list(
            dkeys, dvalues, keys_here, values, q, do, lse, delta, bits, part_block, part_entry, start, stop, b, h,
            lane_k, key, queries, keys, heads, past, scale, D, V, BLOCK_Q, BLOCK_K, LANES_Q, LANES_D, LANES_V, GROUP,
            CAUSAL, True, PRECISION)  # fmt: skip
    store(dk, dkeys * factor, place, real, D, LANES_D)
    store(dv, dvalues, place, real, V, LANES_V)
