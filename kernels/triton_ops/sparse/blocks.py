"""Block-sparse attention that follows lists of blocks, forward and backward, with SLA's linear branch if wanted.

One program per block of queries and head runs through its list with an online softmax; the gradients of q are taken the
same way, those of k and v through the lists of the keys, so nothing needs atomic additions. Lists come from a mask
(`attend`, for every static pattern) or from a selection (sla.py, infllm_v2.py beside this file).

Rows: a token may bring `group` rows, its query heads that share one key head: q (B,T,H,D), k (B,K,H/group,D).
Linear branch, when `feature` is given: row i of block of queries m adds (f_i S_m) / (f_i z_m), and nothing for 0 / 0.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from gnomon.kernels.mask import Bound
from gnomon.kernels.op import Result, State
from gnomon.kernels.sparse.base import in_tiles
from gnomon.kernels.triton_ops.aot import Build
from gnomon.kernels.triton_ops.sparse.lists import Lists, from_mask


@triton.jit
def _visible(bits, entry, lane_q, lane_k, inside, token, key, keys, past,
             BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, CAUSAL: tl.constexpr, PARTIAL: tl.constexpr):  # fmt: skip
    """(rows, keys) bool of one block."""
    if PARTIAL:
        words = tl.load(bits + entry * BLOCK_Q + lane_q, mask=lane_q < BLOCK_Q, other=0)
        seen = ((words[:, None] >> lane_k[None, :].to(tl.int64)) & 1) != 0
    else:
        seen = inside[:, None] & ((lane_k < BLOCK_K) & (key < keys))[None, :]
        if CAUSAL:
            seen = seen & (key[None, :] <= token[:, None] + past)
    return seen


@triton.jit
def _rows(b, h, m, queries, heads, BLOCK_Q: tl.constexpr, LANES_Q: tl.constexpr, GROUP: tl.constexpr):
    """Lanes, whether they are rows, their tokens and where they stand in (B,T,H,...)."""
    lane = tl.arange(0, LANES_Q)
    row = m * BLOCK_Q + lane
    inside = (lane < BLOCK_Q) & (row < queries * GROUP)
    token = row // GROUP
    place = (b.to(tl.int64) * queries + token) * heads * GROUP + h * GROUP + row % GROUP
    return lane, inside, token, place


@triton.jit
def _columns(b, h, j, keys, heads, BLOCK_K: tl.constexpr, LANES_K: tl.constexpr):
    lane = tl.arange(0, LANES_K)
    key = j * BLOCK_K + lane
    place = (b.to(tl.int64) * keys + key) * heads + h
    return lane, key, (lane < BLOCK_K) & (key < keys), place


@triton.jit
def _tile(x, place, inside, WIDTH: tl.constexpr, LANES: tl.constexpr, start=0):
    """LANES columns from `start` on of the rows of x at `place`, padded with zeros."""
    lane = start + tl.arange(0, LANES)
    return tl.load(x + place[:, None] * WIDTH + lane[None, :], mask=inside[:, None] & (lane < WIDTH)[None, :], other=0)


@triton.jit
def _store(x, value, place, inside, WIDTH: tl.constexpr, LANES: tl.constexpr, start=0):
    lane = start + tl.arange(0, LANES)
    where = inside[:, None] & (lane < WIDTH)[None, :]
    tl.store(x + place[:, None] * WIDTH + lane[None, :], value.to(x.dtype.element_ty), mask=where)


@triton.jit
def _forward_list(top, total, acc, q, k, v, bits, first, block, at, b, h, lane_q, inside, token, keys, heads, past,
                  scale, D: tl.constexpr, V: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr,
                  LANES_K: tl.constexpr, LANES_D: tl.constexpr, LANES_V: tl.constexpr, CAUSAL: tl.constexpr,
                  PARTIAL: tl.constexpr, PRECISION: tl.constexpr):  # fmt: skip
    for entry in range(tl.load(first + at), tl.load(first + at + 1)):
        j = tl.load(block + entry)
        lane_k, key, real, place = _columns(b, h, j, keys, heads, BLOCK_K, LANES_K)
        keys_here = _tile(k, place, real, D, LANES_D)
        values = _tile(v, place, real, V, LANES_V)
        seen = _visible(bits, entry, lane_q, lane_k, inside, token, key, keys, past, BLOCK_Q, BLOCK_K, CAUSAL, PARTIAL)
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
            scale, queries, keys, heads, past, list_rows, list_heads,
            D: tl.constexpr, V: tl.constexpr, E: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr,
            LANES_Q: tl.constexpr, LANES_K: tl.constexpr, LANES_D: tl.constexpr, LANES_V: tl.constexpr,
            LANES_E: tl.constexpr, GROUP: tl.constexpr, CAUSAL: tl.constexpr, PARTIAL: tl.constexpr,
            LINEAR: tl.constexpr, PRECISION: tl.constexpr, ACC: tl.constexpr):  # fmt: skip
    m, many = tl.program_id(0), tl.num_programs(0)
    b, h = tl.program_id(1) // heads, tl.program_id(1) % heads
    at = ((b % list_rows) * list_heads + h % list_heads) * many + m
    lane_q, inside, token, place = _rows(b, h, m, queries, heads, BLOCK_Q, LANES_Q, GROUP)
    here = _tile(q, place, inside, D, LANES_D)
    top = tl.full((LANES_Q,), -float("inf"), ACC)
    total = tl.zeros((LANES_Q,), ACC)
    acc = tl.zeros((LANES_Q, LANES_V), ACC)
    top, total, acc = _forward_list(
        top, total, acc, here, k, v, bits, full_first, full_block, at, b, h, lane_q, inside, token, keys, heads, past,
        scale, D, V, BLOCK_Q, BLOCK_K, LANES_K, LANES_D, LANES_V, CAUSAL, False, PRECISION)  # fmt: skip
    if PARTIAL:
        top, total, acc = _forward_list(
            top, total, acc, here, k, v, bits, part_first, part_block, at, b, h, lane_q, inside, token, keys, heads,
            past, scale, D, V, BLOCK_Q, BLOCK_K, LANES_K, LANES_D, LANES_V, CAUSAL, True, PRECISION)  # fmt: skip
    nothing = total == 0
    total = tl.where(nothing, 1.0, total)
    tl.store(lse + place, tl.where(nothing, 0.0, top + tl.log2(total)), mask=inside)
    out = acc / total[:, None]
    if LINEAR:
        feature = _tile(f, place, inside, E, LANES_E)
        lane = tl.arange(0, LANES_E)
        where = tl.program_id(1).to(tl.int64) * many + m
        norm = tl.load(z + where * E + lane, mask=lane < E, other=0)
        below = tl.sum(feature.to(ACC) * norm[None, :], 1)
        moment = _tile(s + where * E * V, lane, lane < E, V, LANES_V)
        above = tl.dot(feature, moment.to(feature.dtype), input_precision=PRECISION)
        out += tl.where((below == 0)[:, None], 0.0, above / tl.where(below == 0, 1.0, below)[:, None])
    _store(o, out, place, inside, V, LANES_V)


@triton.jit
def _dq_list(acc, q, do, level, delta, k, v, bits, first, block, at, b, h, lane_q, inside, token, keys, heads, past,
             scale, D: tl.constexpr, V: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr,
             LANES_K: tl.constexpr, LANES_D: tl.constexpr, LANES_V: tl.constexpr, CAUSAL: tl.constexpr,
             PARTIAL: tl.constexpr, PRECISION: tl.constexpr):  # fmt: skip
    for entry in range(tl.load(first + at), tl.load(first + at + 1)):
        j = tl.load(block + entry)
        lane_k, key, real, place = _columns(b, h, j, keys, heads, BLOCK_K, LANES_K)
        keys_here = _tile(k, place, real, D, LANES_D)
        values = _tile(v, place, real, V, LANES_V)
        seen = _visible(bits, entry, lane_q, lane_k, inside, token, key, keys, past, BLOCK_Q, BLOCK_K, CAUSAL, PARTIAL)
        score = tl.dot(q, tl.trans(keys_here), input_precision=PRECISION) * scale
        weight = tl.where(seen, tl.exp2(score - level[:, None]), 0.0)
        dweight = tl.dot(do, tl.trans(values), input_precision=PRECISION)
        dscore = weight * (dweight - delta[:, None])
        acc += tl.dot(dscore.to(keys_here.dtype), keys_here, input_precision=PRECISION)
    return acc


@triton.jit
def backward_rows(o, do, delta, f, s, z, df, ds, dz, queries, heads,
                  V: tl.constexpr, E: tl.constexpr, BLOCK_Q: tl.constexpr, LANES_Q: tl.constexpr, LANES_V: tl.constexpr,
                  LANES_E: tl.constexpr, GROUP: tl.constexpr, LINEAR: tl.constexpr, PRECISION: tl.constexpr,
                  ACC: tl.constexpr):  # fmt: skip
    """What belongs to rows alone: the softmax branch's sum of o * do, and the gradients of the linear branch."""
    m, many = tl.program_id(0), tl.num_programs(0)
    b, h = tl.program_id(1) // heads, tl.program_id(1) % heads
    _lane, inside, _token, place = _rows(b, h, m, queries, heads, BLOCK_Q, LANES_Q, GROUP)
    change = tl.zeros((LANES_Q,), ACC)
    # columns in parts: all of S and its gradient at once are more than the registers hold
    LANES_C: tl.constexpr = LANES_V if LANES_V < 64 else 64
    for column in tl.range(0, LANES_V, LANES_C, num_stages=1):
        dout = _tile(do, place, inside, V, LANES_C, column)
        change += tl.sum(_tile(o, place, inside, V, LANES_C, column).to(ACC) * dout.to(ACC), 1)
    if LINEAR:
        feature = _tile(f, place, inside, E, LANES_E)
        lane = tl.arange(0, LANES_E)
        where = tl.program_id(1).to(tl.int64) * many + m
        norm = tl.load(z + where * E + lane, mask=lane < E, other=0)
        below = tl.sum(feature.to(ACC) * norm[None, :], 1)
        inverse = tl.where(below == 0, 0.0, 1 / tl.where(below == 0, 1.0, below))
        pulled = tl.zeros((LANES_Q, LANES_E), ACC)
        for column in tl.range(0, LANES_V, LANES_C, num_stages=1):
            dout = _tile(do, place, inside, V, LANES_C, column)
            moment = _tile(s + where * E * V, lane, lane < E, V, LANES_C, column).to(dout.dtype)
            pulled += tl.dot(dout, tl.trans(moment), input_precision=PRECISION)
        # do S^T serves twice: with the features it is the branch's own sum of o * do
        linear = tl.sum(pulled * feature.to(ACC), 1) * inverse
        change -= linear
        _store(df, (pulled - linear[:, None] * norm[None, :]) * inverse[:, None], place, inside, E, LANES_E)
        scaled = feature.to(ACC) * inverse[:, None]
        tl.store(dz + where * E + lane, -tl.sum(scaled * linear[:, None], 0), mask=lane < E)
        for column in tl.range(0, LANES_V, LANES_C, num_stages=1):
            dout = _tile(do, place, inside, V, LANES_C, column)
            dmoment = tl.dot(tl.trans(scaled.to(dout.dtype)), dout, input_precision=PRECISION)
            _store(ds + where * E * V, dmoment, lane, lane < E, V, LANES_C, column)
    tl.store(delta + place, change, mask=inside)


@triton.jit
def backward_queries(q, k, v, do, lse, delta, dq, full_first, full_block, part_first, part_block, bits,
                     scale, factor, queries, keys, heads, past, list_rows, list_heads,
                     D: tl.constexpr, V: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr,
                     LANES_Q: tl.constexpr, LANES_K: tl.constexpr, LANES_D: tl.constexpr, LANES_V: tl.constexpr,
                     GROUP: tl.constexpr, CAUSAL: tl.constexpr, PARTIAL: tl.constexpr, PRECISION: tl.constexpr,
                     ACC: tl.constexpr):  # fmt: skip
    m, many = tl.program_id(0), tl.num_programs(0)
    b, h = tl.program_id(1) // heads, tl.program_id(1) % heads
    at = ((b % list_rows) * list_heads + h % list_heads) * many + m
    lane_q, inside, token, place = _rows(b, h, m, queries, heads, BLOCK_Q, LANES_Q, GROUP)
    here = _tile(q, place, inside, D, LANES_D)
    dout = _tile(do, place, inside, V, LANES_V)
    level = tl.load(lse + place, mask=inside, other=0)
    change = tl.load(delta + place, mask=inside, other=0)
    acc = tl.zeros((LANES_Q, LANES_D), ACC)
    acc = _dq_list(
        acc, here, dout, level, change, k, v, bits, full_first, full_block, at, b, h, lane_q, inside, token, keys,
        heads, past, scale, D, V, BLOCK_Q, BLOCK_K, LANES_K, LANES_D, LANES_V, CAUSAL, False, PRECISION)  # fmt: skip
    if PARTIAL:
        acc = _dq_list(
            acc, here, dout, level, change, k, v, bits, part_first, part_block, at, b, h, lane_q, inside, token, keys,
            heads, past, scale, D, V, BLOCK_Q, BLOCK_K, LANES_K, LANES_D, LANES_V, CAUSAL, True, PRECISION)  # fmt: skip
    _store(dq, acc * factor, place, inside, D, LANES_D)


@triton.jit
def _dkv_list(dk, dv, k, v, q, do, lse, delta, bits, first, block, entry_of, at, b, h, lane_k, key, queries, keys,
              heads, past, scale,
              D: tl.constexpr, V: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, LANES_Q: tl.constexpr,
              LANES_D: tl.constexpr, LANES_V: tl.constexpr, GROUP: tl.constexpr, CAUSAL: tl.constexpr,
              PARTIAL: tl.constexpr, PRECISION: tl.constexpr):  # fmt: skip
    for number in range(tl.load(first + at), tl.load(first + at + 1)):
        m = tl.load(block + number)
        entry = tl.load(entry_of + number)
        lane_q, inside, token, place = _rows(b, h, m, queries, heads, BLOCK_Q, LANES_Q, GROUP)
        here = _tile(q, place, inside, D, LANES_D)
        dout = _tile(do, place, inside, V, LANES_V)
        level = tl.load(lse + place, mask=inside, other=0)
        change = tl.load(delta + place, mask=inside, other=0)
        seen = _visible(bits, entry, lane_q, lane_k, inside, token, key, keys, past, BLOCK_Q, BLOCK_K, CAUSAL, PARTIAL)
        score = tl.dot(here, tl.trans(k), input_precision=PRECISION) * scale
        weight = tl.where(seen, tl.exp2(score - level[:, None]), 0.0)
        dv += tl.dot(tl.trans(weight.to(dout.dtype)), dout, input_precision=PRECISION)
        dweight = tl.dot(dout, tl.trans(v), input_precision=PRECISION)
        dscore = weight * (dweight - change[:, None])
        dk += tl.dot(tl.trans(dscore.to(here.dtype)), here, input_precision=PRECISION)
    return dk, dv


@triton.jit
def backward_keys(q, k, v, do, lse, delta, dk, dv, full_first, full_block, full_entry, part_first, part_block,
                  part_entry, bits, scale, factor, queries, keys, heads, past, list_rows, list_heads,
                  D: tl.constexpr, V: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr,
                  LANES_Q: tl.constexpr, LANES_K: tl.constexpr, LANES_D: tl.constexpr, LANES_V: tl.constexpr,
                  GROUP: tl.constexpr, CAUSAL: tl.constexpr, PARTIAL: tl.constexpr, PRECISION: tl.constexpr,
                  ACC: tl.constexpr):  # fmt: skip
    j, many = tl.program_id(0), tl.num_programs(0)
    b, h = tl.program_id(1) // heads, tl.program_id(1) % heads
    at = ((b % list_rows) * list_heads + h % list_heads) * many + j
    lane_k, key, real, place = _columns(b, h, j, keys, heads, BLOCK_K, LANES_K)
    keys_here = _tile(k, place, real, D, LANES_D)
    values = _tile(v, place, real, V, LANES_V)
    dkeys = tl.zeros((LANES_K, LANES_D), ACC)
    dvalues = tl.zeros((LANES_K, LANES_V), ACC)
    dkeys, dvalues = _dkv_list(
        dkeys, dvalues, keys_here, values, q, do, lse, delta, bits, full_first, full_block, full_entry, at, b, h,
        lane_k, key, queries, keys, heads, past, scale, D, V, BLOCK_Q, BLOCK_K, LANES_Q, LANES_D, LANES_V, GROUP,
        CAUSAL, False, PRECISION)  # fmt: skip
    if PARTIAL:
        dkeys, dvalues = _dkv_list(
            dkeys, dvalues, keys_here, values, q, do, lse, delta, bits, part_first, part_block, part_entry, at, b, h,
            lane_k, key, queries, keys, heads, past, scale, D, V, BLOCK_Q, BLOCK_K, LANES_Q, LANES_D, LANES_V, GROUP,
            CAUSAL, True, PRECISION)  # fmt: skip
    _store(dk, dkeys * factor, place, real, D, LANES_D)
    _store(dv, dvalues, place, real, V, LANES_V)


class _Attend(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: FunctionCtx, q: Tensor, k: Tensor, v: Tensor, f: Tensor | None, s: Tensor | None, z: Tensor | None,
        lists: Lists, scale: float, past: int | None,
    ) -> Tensor:  # fmt: skip
        linear = tuple(x.contiguous() for x in (f, s, z) if x is not None)
        call = _Launch(q.contiguous(), k.contiguous(), v.contiguous(), linear, lists, scale, past)
        o = torch.empty((*q.shape[:3], v.shape[3]), dtype=q.dtype, device=q.device)
        lse = torch.empty(q.shape[:3], dtype=torch.promote_types(q.dtype, torch.float32), device=q.device)
        call(forward, o=o, lse=lse, **call.linear(), **call.lists())
        ctx.save_for_backward(call.q, call.k, call.v, o, lse, *linear)
        ctx.fixed = lists, scale, past
        return o

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, do: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, o, lse, *linear = ctx.saved_tensors
        call = _Launch(q, k, v, tuple(linear), *ctx.fixed)
        dq, dk, dv, delta = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v), torch.empty_like(lse)
        dlinear = tuple(torch.empty_like(x) for x in linear)
        rows = {"do": do.contiguous(), "delta": delta}
        # this one first: it leaves `delta` for the others
        call(backward_rows, o=o, **rows, **call.linear(), **call.linear(dlinear))
        call(backward_queries, lse=lse, **rows, dq=dq, **call.lists())
        call(backward_keys, lse=lse, **rows, dk=dk, dv=dv, **call.lists(transposed=True))
        return dq, dk, dv, *(dlinear or (None, None, None)), None, None, None


@dataclass(frozen=True)
class _Launch:
    """What the kernels of one call have in common."""

    q: Tensor
    k: Tensor
    v: Tensor
    extra: tuple[Tensor, ...]
    table: Lists
    scale: float
    past: int | None

    def linear(self, gradients: tuple[Tensor, ...] | None = None) -> dict[str, Tensor]:
        """The linear branch's tensors, or their gradients; without a branch, anything."""
        names = ("f", "s", "z") if gradients is None else ("df", "ds", "dz")
        return dict(zip(names, (self.extra if gradients is None else gradients) or (self.q, self.q, self.q)))

    def lists(self, *, transposed: bool = False) -> dict[str, Tensor]:
        """The lists by the kernels' names for them; where there are no partial blocks, anything."""
        found = {"bits": self.table.full.first if self.table.bits is None else self.table.bits}
        for name, entries in (("full", self.table.full), ("part", self.table.partial or self.table.full)):
            found[f"{name}_first"] = entries.key_first if transposed else entries.first
            found[f"{name}_block"] = entries.key_block if transposed else entries.block
            if transposed:
                found[f"{name}_entry"] = entries.key_entry
        return found

    def __call__(self, kernel: triton.JITFunction, **tensors: Tensor) -> None:
        heads = self.k.shape[2]
        fixed = constants(
            self.q.dtype, self.q.shape[3], self.v.shape[3], self.table.block, group=self.q.shape[2] // heads,
            causal=self.past is not None, partial=self.table.partial is not None,
            feature=self.extra[0].shape[3] if self.extra else None,
        )  # fmt: skip
        given = {
            **tensors, **fixed, "q": self.q, "k": self.k, "v": self.v, "scale": self.scale * math.log2(math.e),
            "factor": self.scale, "queries": self.q.shape[1], "keys": self.k.shape[1], "heads": heads,
            "past": self.past or 0, "list_rows": self.table.rows, "list_heads": self.table.heads,
        }  # fmt: skip
        blocks = self.table.blocks[1 if kernel is backward_keys else 0]
        with torch.cuda.device_of(self.q):
            kernel[(blocks, len(self.q) * heads)](
                **{name: given[name] for name in kernel.arg_names}, **schedule(kernel, fixed)
            )


def constants(
    dtype: torch.dtype, width: int, value_width: int, block: tuple[int, int], *, group: int = 1, causal: bool = False,
    partial: bool = False, feature: int | None = None,
) -> dict[str, object]:  # fmt: skip
    """The kernels' compile-time arguments."""
    lanes = {"Q": block[0], "K": block[1], "D": width, "V": value_width, "E": feature or 1}
    return {
        "D": width, "V": value_width, "E": feature or 1, "BLOCK_Q": block[0], "BLOCK_K": block[1],
        **{f"LANES_{name}": max(16, triton.next_power_of_2(size)) for name, size in lanes.items()},
        "GROUP": group, "CAUSAL": causal, "PARTIAL": partial, "LINEAR": feature is not None,
        # float32 means float32 here; what is narrower has one precision anyway
        "PRECISION": "ieee" if dtype in (torch.float32, torch.float64) else "tf32",
        "ACC": tl.float64 if dtype == torch.float64 else tl.float32,
    }  # fmt: skip


def schedule(kernel: triton.JITFunction, fixed: dict[str, object]) -> dict[str, int]:
    """Warps and stages: chosen so that the shipped sizes do not spill, not yet by measuring."""
    small = fixed["LANES_Q"] < 32 or (kernel is forward and fixed["LANES_D"] <= 64)
    pipelined = kernel is not backward_keys or fixed["LANES_D"] <= 64
    return {"num_warps": 4 if small else 8, "num_stages": 2 if pipelined else 1}


def sparse(
    q: Tensor, k: Tensor, v: Tensor, *, lists: Lists, scale: float, past: int | None = None,
    feature: Tensor | None = None, moments: tuple[Tensor, Tensor] | None = None,
) -> Tensor:  # fmt: skip
    """q (B,T,H,D), k (B,K,Hk,D), v (B,K,Hk,V) -> (B,T,H,V); H is a multiple of Hk.

    past     causal: query t stands at position t + past; None lets every pair of a listed block through
    feature  (B,T,H,E) with moments S (B,H,M,E,V) and z (B,H,M,E): the linear branch
    """
    s, z = moments if moments is not None else (None, None)
    return _Attend.apply(q, k, v, feature, s, z, lists, scale, past)


def attend(q: Tensor, k: Tensor, v: Tensor, *, mask: Bound, scale: float, state: State | None = None) -> Result:
    """Under any static mask, image tokens in the order of square tiles."""

    def run(q: Tensor, k: Tensor, v: Tensor, mask: Bound) -> Tensor:
        return sparse(q, k, v, lists=from_mask(mask, heads=q.shape[2]), scale=scale)

    return in_tiles(run, q, k, v, mask), None


def builds(dtype: str, width: int, block: tuple[int, int], **which: object) -> list[Build]:
    """What a call compiles, for compiling ahead of time: dtype bf16, fp16 or fp32; `which` as in `constants`."""
    fixed = constants(torch.float32 if dtype == "fp32" else torch.bfloat16, width, width, block, **which)
    types = dict.fromkeys(("q", "k", "v", "o", "do", "dq", "dk", "dv", "f", "df"), f"*{dtype}")
    types |= dict.fromkeys(("lse", "delta", "s", "z", "ds", "dz"), "*fp32")
    types |= dict.fromkeys(("queries", "keys", "heads", "past", "list_rows", "list_heads"), "i32")
    types |= {"scale": "fp32", "factor": "fp32", "bits": "*i64"}
    found = []
    for kernel in (forward, backward_rows, backward_queries, backward_keys):
        mine = {name: value for name, value in fixed.items() if name in kernel.arg_names}
        others = {name: types.get(name, "*i32") for name in kernel.arg_names if name not in fixed}
        how = schedule(kernel, fixed)
        found.append(Build(kernel, others, mine, how["num_warps"], how["num_stages"]))
    return found
