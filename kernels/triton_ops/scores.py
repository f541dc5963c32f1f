"""Rows and column sums of softmax attention: one pass for the logarithm of each row's sum, a second for the weights.

Logits are made tile by tile, twice, and never stored. The first pass splits the keys where there are few rows, for a
single query must not leave a GPU idle, and PyTorch puts the parts together; the second one owns its results, rows or
columns, so that nothing is added atomically. q and k are read where they lie, heads or tokens first.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
import triton
import triton.language as tl
from torch import Tensor

from gnomon.kernels.scores import Limits, Sight
from gnomon.kernels.triton_ops.aot import Build
from gnomon.kernels.triton_ops.launch import PROGRAMS, REGISTERS


@triton.jit
def _tile(x, index, inside, stride, start, WIDTH: tl.constexpr, LANES: tl.constexpr, UNIT: tl.constexpr):
    """Strides come in units of UNIT, so that the compiler knows how far loads are aligned."""
    lane = start + tl.arange(0, LANES)
    where = inside[:, None] & (lane < WIDTH)[None, :]
    return tl.load(x + index.to(tl.int64)[:, None] * stride * UNIT + lane[None, :], mask=where, other=0)


@triton.jit
def _logits(q, k, row, key, rows, keys, stride_q, stride_k, scale, cap,
            D: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_S: tl.constexpr, LANES_D: tl.constexpr, UNIT: tl.constexpr,
            CAPPED: tl.constexpr, MOVE: tl.constexpr, PRECISION: tl.constexpr, ACC: tl.constexpr):  # fmt: skip
    """Of one head; wide ones are taken in parts."""
    found = tl.zeros((BLOCK_R, BLOCK_S), ACC)
    for start in tl.range(0, D, LANES_D, num_stages=1):
        queries = _tile(q, row, row < rows, stride_q, start, D, LANES_D, UNIT).to(MOVE)
        theirs = _tile(k, key, key < keys, stride_k, start, D, LANES_D, UNIT).to(MOVE)
        found += tl.dot(queries, tl.trans(theirs), input_precision=PRECISION)
    found *= scale
    if CAPPED:
        found = cap - 2 * cap / (1 + tl.exp(2 * found / cap))
    return found


@triton.jit
def _reach(first, last, b, row, rows, keys, SIGHT: tl.constexpr):
    """The first and last key that rows see, as far as limits tell."""
    if SIGHT == "limits":
        low = tl.load(first + b.to(tl.int64) * rows + row, mask=row < rows, other=keys)
        high = tl.load(last + b.to(tl.int64) * rows + row, mask=row < rows, other=-1)
    else:
        low, high = row * 0, row * 0 + keys - 1
    return low, high


@triton.jit
def _seen(mask, of_row, of_key, low, high, b, row, key, rows, keys, SIGHT: tl.constexpr, SEGMENTS: tl.constexpr):
    seen = (row < rows)[:, None] & (key < keys)[None, :]
    if SIGHT == "mask":
        at = (b.to(tl.int64) * rows + row)[:, None] * keys + key[None, :]
        seen = tl.load(mask + at, mask=seen, other=0) != 0
    elif SIGHT == "limits":
        seen = seen & (key[None, :] >= low[:, None]) & (key[None, :] <= high[:, None])
        if SEGMENTS:
            mine = tl.load(of_row + b.to(tl.int64) * rows + row, mask=row < rows, other=-1)
            theirs = tl.load(of_key + b.to(tl.int64) * keys + key, mask=key < keys, other=-1)
            seen = seen & (mine[:, None] == theirs[None, :]) & (theirs >= 0)[None, :]
    return seen


@triton.jit
def statistics(q, k, top, total, mask, first, last, of_row, of_key, rows, keys, heads, group, span, scale, cap,
               q_batch, q_row, q_head, k_batch, k_row, k_head,
               D: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_S: tl.constexpr, LANES_D: tl.constexpr, UNIT: tl.constexpr,
               CAPPED: tl.constexpr, SIGHT: tl.constexpr, SEGMENTS: tl.constexpr, MOVE: tl.constexpr,
               PRECISION: tl.constexpr, ACC: tl.constexpr):  # fmt: skip
    """Of each row, over `span` keys: the largest logit, and the sum of the exponentials relative to it."""
    blocks = tl.cdiv(rows, BLOCK_R)
    which, split = tl.program_id(0) // blocks, tl.program_id(1)
    b, h = (which // heads).to(tl.int64), which % heads
    row = (tl.program_id(0) % blocks) * BLOCK_R + tl.arange(0, BLOCK_R)
    q += (b * q_batch + h.to(tl.int64) * q_head) * UNIT
    k += (b * k_batch + (h // group).to(tl.int64) * k_head) * UNIT
    low, high = _reach(first, last, b, row, rows, keys, SIGHT)
    # whole blocks, so that every one is read from where loads are aligned
    begin = tl.maximum(split * span, tl.min(low) // BLOCK_S * BLOCK_S)
    end = tl.minimum(tl.minimum((split + 1) * span, keys), tl.max(high) + 1)
    most = tl.full((BLOCK_R,), -float("inf"), ACC)
    sums = tl.zeros((BLOCK_R,), ACC)
    for start in range(begin, end, BLOCK_S):
        key = start + tl.arange(0, BLOCK_S)
        logits = _logits(q, k, row, key, rows, keys, q_row, k_row, scale, cap, D, BLOCK_R, BLOCK_S, LANES_D, UNIT,
                         CAPPED, MOVE, PRECISION, ACC)  # fmt: skip
        seen = _seen(mask, of_row, of_key, low, high, b, row, key, rows, keys, SIGHT, SEGMENTS)
        logits = tl.where(seen, logits, -float("inf"))
        new = tl.maximum(most, tl.max(logits, 1))
        # a row that has seen nothing yet keeps -inf, and -inf - -inf must not be taken
        safe = tl.where(new == -float("inf"), 0.0, new)
        sums = sums * tl.exp(most - safe) + tl.sum(tl.exp(logits - safe[:, None]), 1)
        most = new
    place = (split.to(tl.int64) * (tl.num_programs(0) // blocks) + which) * rows + row
    tl.store(top + place, most, mask=row < rows)
    tl.store(total + place, sums, mask=row < rows)


@triton.jit
def weights(q, k, lse, out, mask, first, last, of_row, of_key, rows, keys, heads, group, pool, scale, cap,
            q_batch, q_row, q_head, k_batch, k_row, k_head,
            D: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_S: tl.constexpr, LANES_D: tl.constexpr, UNIT: tl.constexpr,
            CAPPED: tl.constexpr, SIGHT: tl.constexpr, SEGMENTS: tl.constexpr, MOVE: tl.constexpr,
            PRECISION: tl.constexpr, ACC: tl.constexpr):  # fmt: skip
    """The mean of `pool` heads' weights, in a tile of rows and keys."""
    blocks = tl.cdiv(rows, BLOCK_R)
    which = tl.program_id(0) // blocks
    pools = heads // pool
    b, h = (which // pools).to(tl.int64), (which % pools * pool).to(tl.int64)
    row = (tl.program_id(0) % blocks) * BLOCK_R + tl.arange(0, BLOCK_R)
    key = tl.program_id(1) * BLOCK_S + tl.arange(0, BLOCK_S)
    q += b * q_batch * UNIT
    k += b * k_batch * UNIT
    mean = tl.zeros((BLOCK_R, BLOCK_S), ACC)
    for head in tl.range(h, h + pool, num_stages=1):
        mine, theirs = q + head * q_head * UNIT, k + head // group * k_head * UNIT
        logits = _logits(mine, theirs, row, key, rows, keys, q_row, k_row, scale, cap, D, BLOCK_R, BLOCK_S, LANES_D,
                         UNIT, CAPPED, MOVE, PRECISION, ACC)  # fmt: skip
        level = tl.load(lse + (b * heads + head) * rows + row, mask=row < rows, other=0)
        mean += tl.exp(logits - level[:, None])
    low, high = _reach(first, last, b, row, rows, keys, SIGHT)
    seen = _seen(mask, of_row, of_key, low, high, b, row, key, rows, keys, SIGHT, SEGMENTS)
    # what is not seen may be infinite by now
    mean = tl.where(seen, mean / pool, 0.0)
    at = (which.to(tl.int64) * rows + row)[:, None] * keys + key[None, :]
    tl.store(out + at, mean, mask=(row < rows)[:, None] & (key < keys)[None, :])


@triton.jit
def received(q, k, lse, weight, out, mask, first, last, of_row, of_key, rows, keys, heads, group, scale, cap,
             q_batch, q_row, q_head, k_batch, k_row, k_head,
             D: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_S: tl.constexpr, LANES_D: tl.constexpr, UNIT: tl.constexpr,
             CAPPED: tl.constexpr, SIGHT: tl.constexpr, SEGMENTS: tl.constexpr, WEIGHTED: tl.constexpr,
             MOVE: tl.constexpr, PRECISION: tl.constexpr, ACC: tl.constexpr):  # fmt: skip
    """The weights of all rows on a block of keys, added."""
    blocks = tl.cdiv(keys, BLOCK_S)
    which = tl.program_id(0) // blocks
    b, h = (which // heads).to(tl.int64), which % heads
    start = (tl.program_id(0) % blocks) * BLOCK_S
    key = start + tl.arange(0, BLOCK_S)
    q += (b * q_batch + h.to(tl.int64) * q_head) * UNIT
    k += (b * k_batch + (h // group).to(tl.int64) * k_head) * UNIT
    sums = tl.zeros((BLOCK_S,), ACC)
    for block in range(0, rows, BLOCK_R):
        row = block + tl.arange(0, BLOCK_R)
        low, high = _reach(first, last, b, row, rows, keys, SIGHT)
        # causal: half of the tiles are empty
        if (tl.max(high) >= start) & (tl.min(low) < start + BLOCK_S):
            logits = _logits(q, k, row, key, rows, keys, q_row, k_row, scale, cap, D, BLOCK_R, BLOCK_S, LANES_D,
                             UNIT, CAPPED, MOVE, PRECISION, ACC)  # fmt: skip
            seen = _seen(mask, of_row, of_key, low, high, b, row, key, rows, keys, SIGHT, SEGMENTS)
            level = tl.load(lse + which.to(tl.int64) * rows + row, mask=row < rows, other=0)
            share = tl.where(seen, tl.exp(logits - level[:, None]), 0.0)
            if WEIGHTED:
                share *= tl.load(weight + b * rows + row, mask=row < rows, other=0)[:, None]
            sums += tl.sum(share, 0)
    tl.store(out + which.to(tl.int64) * keys + key, sums, mask=key < keys)


@dataclass(frozen=True)
class _Call:
    """q, k and what is seen, as all three kernels take them."""

    q: Tensor
    k: Tensor
    scale: float
    softcap: float | None
    sight: Sight

    @property
    def strides(self) -> dict[str, int]:
        names = [f"{name}_{side}" for name in "qk" for side in ("batch", "row", "head")]
        return dict(zip(names, (*self.q.stride()[:3], *self.k.stride()[:3])))

    @cached_property
    def fixed(self) -> dict[str, object]:
        kind = "none" if self.sight is None else "limits" if isinstance(self.sight, Limits) else "mask"
        segments = isinstance(self.sight, Limits) and self.sight.segments is not None
        return constants(
            self.q.dtype, self.q.shape[3], rows=self.q.shape[1], device=self.q.device.type,
            capped=self.softcap is not None, sight=kind, segments=segments, unit=math.gcd(8, *self.strides.values()),
        )  # fmt: skip

    @cached_property
    def tables(self) -> dict[str, Tensor | None]:
        """The tensors of what is seen, by the kernels' names."""
        found: dict[str, Tensor | None] = dict.fromkeys(("mask", "first", "last", "of_row", "of_key"))
        if isinstance(self.sight, Limits):
            last = self.sight.last
            first = torch.zeros_like(last) if self.sight.first is None else self.sight.first
            given = zip(("first", "last", "of_row", "of_key"), (first, last, *(self.sight.segments or ())))
            found |= {name: x.to(torch.int32).contiguous() for name, x in given}
        elif self.sight is not None:
            found["mask"] = self.sight.contiguous().view(torch.uint8)
        return found

    def new(self, *size: int) -> Tensor:
        return torch.empty(size, dtype=torch.promote_types(self.q.dtype, torch.float32), device=self.q.device)

    def __call__(self, kernel: triton.JITFunction, grid: tuple[int, int], **more: object) -> None:
        q, k, fixed = self.q, self.k, self.fixed
        given = {"q": q, "k": k, "rows": q.shape[1], "keys": k.shape[1], "heads": q.shape[2], "scale": self.scale}
        given |= {"group": q.shape[2] // k.shape[2], "cap": self.softcap or 0.0, **fixed, **self.tables}
        given |= {name: stride // fixed["UNIT"] for name, stride in self.strides.items()}
        given |= {"WEIGHTED": more.get("weight") is not None, **more}
        with torch.cuda.device_of(q):
            kernel[grid](**{name: given[name] for name in kernel.arg_names}, **schedule(fixed))

    def lse(self) -> Tensor:
        """(B,H,R) the logarithm of the sum of exponentials of each row; 0 where nothing is seen."""
        batch, rows, heads, _ = self.q.shape
        blocks = batch * heads * triton.cdiv(rows, self.fixed["BLOCK_R"])
        tiles = triton.cdiv(self.k.shape[1], self.fixed["BLOCK_S"])
        span = triton.cdiv(tiles, min(tiles, triton.cdiv(PROGRAMS, blocks)))
        splits = triton.cdiv(tiles, span)
        top, total = (self.new(splits, batch, heads, rows) for _ in range(2))
        self(statistics, (blocks, splits), top=top, total=total, span=span * self.fixed["BLOCK_S"])
        found = torch.logsumexp(top + total.log(), 0)
        return found.masked_fill(found == -torch.inf, 0.0)


def _in_a_row(x: Tensor) -> Tensor:
    """The kernels go along a token's channels one by one."""
    return x if x.stride(3) == 1 else x.contiguous()


def rows(q: Tensor, k: Tensor, *, scale: float, softcap: float | None, sight: Sight, pooled: bool) -> Tensor:
    call = _Call(_in_a_row(q), _in_a_row(k), scale, softcap, sight)
    (batch, count, heads, _), keys = q.shape, k.shape[1]
    out = call.new(batch, count, keys) if pooled else call.new(batch, heads, count, keys)
    pool = heads if pooled else 1
    blocks = batch * heads // pool * triton.cdiv(count, call.fixed["BLOCK_R"])
    call(weights, (blocks, triton.cdiv(keys, call.fixed["BLOCK_S"])), lse=call.lse(), out=out, pool=pool)
    return out


def columns(
    q: Tensor, k: Tensor, *, scale: float, softcap: float | None, sight: Sight, weight: Tensor | None,
    chunk: int | None,
) -> Tensor:  # fmt: skip
    call = _Call(_in_a_row(q), _in_a_row(k), scale, softcap, sight)
    out = call.new(len(q), q.shape[2], k.shape[1])
    grid = (len(q) * q.shape[2] * triton.cdiv(k.shape[1], call.fixed["BLOCK_S"]), 1)
    weight = None if weight is None else weight.to(out.dtype).contiguous()
    call(received, grid, lse=call.lse(), weight=weight, out=out)
    return out


def constants(
    dtype: torch.dtype, width: int, *, rows: int, device: str, capped: bool = False, sight: str = "none",
    segments: bool = False, unit: int = 8,
) -> dict[str, object]:  # fmt: skip
    """The kernels' compile-time arguments."""
    # the interpreter has no products of bfloat16
    move = torch.float32 if dtype == torch.bfloat16 and device == "cpu" else dtype
    most = 64 if dtype in (torch.bfloat16, torch.float16) else 32
    return {
        "D": width, "BLOCK_R": min(most, max(16, triton.next_power_of_2(rows))), "BLOCK_S": 64,
        "LANES_D": min(most, max(16, triton.next_power_of_2(width))), "UNIT": unit, "CAPPED": capped,
        "SIGHT": sight, "SEGMENTS": segments, "MOVE": getattr(tl, str(move).removeprefix("torch.")),
        # float32 is put together from three products
        "PRECISION": "tf32x3" if dtype == torch.float32 else "tf32",
        "ACC": tl.float64 if dtype == torch.float64 else tl.float32,
    }  # fmt: skip


def schedule(fixed: dict[str, object]) -> dict[str, int]:
    """Warps, stages, registers: chosen so that the shipped sizes do not spill, not yet by measuring."""
    return {"num_warps": 4 if fixed["MOVE"].primitive_bitwidth == 16 else 8, "num_stages": 2, "maxnreg": REGISTERS}


def builds(dtype: torch.dtype, width: int, *, rows: int, weighted: bool = False, **which: object) -> list[Build]:
    """What calls compile, for compiling ahead of time; `which` as in `constants`."""
    fixed = {**constants(dtype, width, rows=rows, device="cuda", **which), "WEIGHTED": weighted}
    stored = {torch.bfloat16: "*bf16", torch.float16: "*fp16", torch.float32: "*fp32"}[dtype]
    types = {"q": stored, "k": stored, "mask": "*u8", "scale": "fp32", "cap": "fp32"}
    types |= dict.fromkeys(("first", "last", "of_row", "of_key"), "*i32")
    types |= dict.fromkeys(("top", "total", "lse", "out", "weight"), "*fp32")
    absent = {"mask"} if fixed["SIGHT"] != "mask" else set()
    absent |= {"first", "last"} if fixed["SIGHT"] != "limits" else set()
    absent |= set() if fixed["SEGMENTS"] else {"of_row", "of_key"}
    absent |= set() if weighted else {"weight"}
    found, how = [], schedule(fixed)
    for kernel in (statistics, weights, received):
        names = [name for name in kernel.arg_names if name not in fixed]
        given = {name: value for name, value in fixed.items() if name in kernel.arg_names}
        given |= {name: None for name in names if name in absent}
        passed = {name: types.get(name, "i32") for name in names if name not in absent}
        found.append(Build(kernel, passed, given, how["num_warps"], how["num_stages"], how["maxnreg"]))
    return found
