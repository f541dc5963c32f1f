"""The delta rule inside a chunk: what its tokens write, solved for the whole chunk, and the gradients of that.

(I + A) e = beta (v - k S) with A_ij = beta_i (k_i exp(g_{j+1} + ... + g_i) k_j), j < i. With M the inverse of I + A:
u = M beta v, w = M beta k (fading from the start), and e = u - w S.
"""

from __future__ import annotations

import triton
import triton.language as tl

from gnomon.kernels.triton_ops.linear.tiles import (
    FINE,
    from_start,
    gate_gradients,
    log_decays,
    pair_decays,
    store,
    tile,
    tokens_of,
)


@triton.jit
def _inverse(a, CHUNK: tl.constexpr, PRECISION: tl.constexpr, ACC: tl.constexpr):
    """Of I + a, a (C,C) strictly lower: rows of all blocks of 16 on the diagonal at once, then blocks of a chunk."""
    BLOCKS: tl.constexpr = CHUNK // FINE
    lane, row = tl.arange(0, CHUNK), tl.arange(0, FINE)
    same = lane[:, None] // FINE == lane[None, :] // FINE
    near = tl.sum(tl.reshape(tl.where(same, a, 0.0), (BLOCKS, FINE, BLOCKS, FINE)), 2)
    solved = tl.zeros((BLOCKS, FINE, FINE), ACC) + tl.where(row[:, None] == row[None, :], 1.0, 0.0)[None]
    for i in range(1, FINE):
        here = row[None, :, None] == i
        factors = tl.sum(tl.where(here, near, 0.0), 1)
        change = tl.sum(factors[:, :, None] * solved, 1)
        solved = tl.where(here, solved - change[:, None, :], solved)
    wide = tl.broadcast_to(solved[:, :, None, :], (BLOCKS, FINE, BLOCKS, FINE))
    inverse = tl.where(same, tl.reshape(wide, (CHUNK, CHUNK)), 0.0)
    if BLOCKS == 1:
        return inverse
    tl.static_assert(BLOCKS <= 4)
    # (I + D far)^-1 D with D the inverse so far: D far has only blocks below the diagonal, its fourth power is zero
    step = tl.dot(inverse, tl.where(same, 0.0, a), input_precision=PRECISION)
    twice = tl.dot(step, tl.dot(step, inverse, input_precision=PRECISION), input_precision=PRECISION)
    inverse += twice
    return inverse - tl.dot(step, inverse, input_precision=PRECISION)


@triton.jit
def solve(k, v, g, beta, e, m, w, u, starts, stops, length, heads,
          K: tl.constexpr, V: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_V: tl.constexpr, CHUNK: tl.constexpr,
          DECAY: tl.constexpr, SOLVED: tl.constexpr, PACKED: tl.constexpr, PRECISION: tl.constexpr,
          ACC: tl.constexpr):  # fmt: skip
    """w (N,H,K) and u (N,H,V); M (N,H,C) is written, or read if it was SOLVED before.

    With vectors k fades from the start of its chunk already and e (N,H,C) holds the products of keys.
    """
    chunk, h = tl.program_id(0) // heads, tl.program_id(0) % heads
    place, real, _ = tokens_of(chunk, h, length, heads, starts, stops, CHUNK, PACKED)
    strength = tl.load(beta + place, mask=real, other=0).to(ACC)
    gate = strength
    if DECAY == "scalar":
        gate = log_decays(tl.load(g + place, mask=real, other=0).to(ACC))
    if SOLVED:
        inverse = tile(m, place, real, 0, CHUNK, CHUNK).to(ACC)
    else:
        if DECAY == "vector":
            pairs = tile(e, place, real, 0, CHUNK, CHUNK)
        else:
            pairs = _products(k, gate, place, real, K, BLOCK_K, CHUNK, DECAY, PRECISION, ACC)
        lane = tl.arange(0, CHUNK)
        below = tl.where(lane[:, None] > lane[None, :], pairs * strength[:, None], 0.0)
        inverse = _inverse(below, CHUNK, PRECISION, ACC)
        store(m, inverse, place, real, 0, CHUNK, CHUNK)
    weights = (inverse * strength[None, :]).to(v.dtype.element_ty)
    for at_k in range(0, K, BLOCK_K):
        keys = tile(k, place, real, at_k, K, BLOCK_K)
        if DECAY == "scalar":
            keys = (keys.to(ACC) * from_start(gate)[:, None]).to(keys.dtype)
        store(w, tl.dot(weights, keys, input_precision=PRECISION), place, real, at_k, K, BLOCK_K)
    for at_v in range(0, V, BLOCK_V):
        values = tile(v, place, real, at_v, V, BLOCK_V)
        store(u, tl.dot(weights, values, input_precision=PRECISION), place, real, at_v, V, BLOCK_V)


@triton.jit
def _products(k, gate, place, real, K: tl.constexpr, BLOCK_K: tl.constexpr, CHUNK: tl.constexpr,
              DECAY: tl.constexpr, PRECISION: tl.constexpr, ACC: tl.constexpr):  # fmt: skip
    pairs = tl.zeros((CHUNK, CHUNK), ACC)
    for at_k in range(0, K, BLOCK_K):
        keys = tile(k, place, real, at_k, K, BLOCK_K)
        pairs += tl.dot(keys, tl.trans(keys), input_precision=PRECISION)
    if DECAY == "scalar":
        pairs *= pair_decays(gate, CHUNK)
    return pairs


@triton.jit
def solve_gradients(k, v, g, beta, e, m, dw, dv, dk, dbeta, de, dg, starts, stops, length, heads,
                    K: tl.constexpr, V: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_V: tl.constexpr,
                    CHUNK: tl.constexpr, DECAY: tl.constexpr, GATES: tl.constexpr, PACKED: tl.constexpr,
                    PRECISION: tl.constexpr, ACC: tl.constexpr):  # fmt: skip
    """dv comes as the gradient of u and becomes that of v; dk is added to, and so is dg (N,H).

    With vectors instead: dw becomes the gradient of the faded keys, and de (N,H,C) that of their products.
    """
    chunk, h = tl.program_id(0) // heads, tl.program_id(0) % heads
    place, real, _ = tokens_of(chunk, h, length, heads, starts, stops, CHUNK, PACKED)
    lane = tl.arange(0, CHUNK)
    below = lane[:, None] > lane[None, :]
    strength = tl.load(beta + place, mask=real, other=0).to(ACC)
    weights = (tile(m, place, real, 0, CHUNK, CHUNK).to(ACC) * strength[None, :]).to(v.dtype.element_ty)
    gate, start = strength, strength
    if DECAY == "scalar":
        gate = log_decays(tl.load(g + place, mask=real, other=0).to(ACC))
        start = from_start(gate)
    dweights = tl.zeros((CHUNK, CHUNK), ACC)
    for at_v in range(0, V, BLOCK_V):
        change = tile(dv, place, real, at_v, V, BLOCK_V)
        values = tile(v, place, real, at_v, V, BLOCK_V)
        dweights += tl.dot(change, tl.trans(values), input_precision=PRECISION)
        store(dv, tl.dot(tl.trans(weights), change, input_precision=PRECISION), place, real, at_v, V, BLOCK_V)
    for at_k in range(0, K, BLOCK_K):
        keys = tile(k, place, real, at_k, K, BLOCK_K)
        if DECAY == "scalar":
            keys = (keys.to(ACC) * start[:, None]).to(keys.dtype)
        derase = tile(dw, place, real, at_k, K, BLOCK_K)
        dweights += tl.dot(derase, tl.trans(keys), input_precision=PRECISION)
    # read again rather than kept: the squares of a chunk are what fills the registers
    inverse = tile(m, place, real, 0, CHUNK, CHUNK).to(ACC)
    dstrength = tl.sum(inverse * dweights, 0)
    # the gradient of an inverse: -M^T dM M^T
    turned = tl.trans(inverse)
    dpairs = tl.dot(dweights * strength[None, :], turned, input_precision=PRECISION)
    dpairs = tl.where(below, -tl.dot(turned, dpairs, input_precision=PRECISION), 0.0)
    if DECAY == "vector":
        pairs = tile(e, place, real, 0, CHUNK, CHUNK)
    else:
        pairs = _products(k, gate, place, real, K, BLOCK_K, CHUNK, DECAY, PRECISION, ACC)
    dstrength += tl.sum(dpairs * tl.where(below, pairs, 0.0), 1)
    tl.store(dbeta + place, dstrength, mask=real)
    dpairs *= strength[:, None]
    both, early = dpairs, tl.zeros((CHUNK,), ACC)
    if DECAY == "vector":
        store(de, dpairs, place, real, 0, CHUNK, CHUNK)
    else:
        if DECAY == "scalar":
            both *= pair_decays(gate, CHUNK)
        both += tl.trans(both)
    weights = (tile(m, place, real, 0, CHUNK, CHUNK).to(ACC) * strength[None, :]).to(v.dtype.element_ty)
    for at_k in range(0, K, BLOCK_K):
        derase = tile(dw, place, real, at_k, K, BLOCK_K)
        dkeys = tl.dot(tl.trans(weights), derase, input_precision=PRECISION)
        if DECAY == "vector":
            store(dw, dkeys, place, real, at_k, K, BLOCK_K)
        else:
            keys = tile(k, place, real, at_k, K, BLOCK_K)
            if DECAY == "scalar":
                dkeys *= start[:, None]
            if GATES:
                early += tl.sum(keys.to(ACC) * dkeys, 1)
            dkeys += tl.dot(both.to(keys.dtype), keys, input_precision=PRECISION)
            dkeys += tile(dk, place, real, at_k, K, BLOCK_K).to(ACC)
            store(dk, dkeys, place, real, at_k, K, BLOCK_K)
    if GATES:
        dgate = gate_gradients(dpairs * pairs, early, CHUNK)
        tl.store(dg + place, tl.load(dg + place, mask=real, other=0) + dgate, mask=real)
