"""Core M, noncausal: moments of the keys in one pass, a read-out per query in another, and both again backward.

    gather    S = sum_j w_j n(k_j) v_j^T,  z = sum_j g_j f(k_j),  u = sum_j b_j v_j
    spread    o_i = a(c_i) n(q_i) S + b(c_i) u,  c_i = f(q_i) z
    pull      the gradients of q: a(c_i) do_i S^T through n, and dc_i z through f

f is a feature map, n the same or features that were rotated before, the weights w, g, b of a key are gates or 1, and
a and b are what a method's read-out makes of the mass c. Backward needs no more kernels: the gradients of S, z and u
are `gather` over the queries and do, with a(c), dc and b(c) for weights; those of v are `spread` over the keys and
those of k are `pull`, with the gradients of S, z and u in their places.

Shapes: x (q or k) (B,T,H,F), y (do or v) (B,T,H,V), S (B,L,F,V), z (B,L,F), u (B,L,V), gates and c (B,T,H). A head of
the moments serves GROUP = H / L heads of the queries, which are then rows beside each other.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from gnomon.kernels.triton_ops.aot import Build
from gnomon.kernels.triton_ops.launch import REGISTERS


@triton.jit
def _rows(b, h, block, tokens, heads, BLOCK: tl.constexpr, GROUP: tl.constexpr):
    """Whether the lanes of a block are rows, and where these stand in (B,T,H)."""
    row = block * BLOCK + tl.arange(0, BLOCK)
    place = (b.to(tl.int64) * tokens + row // GROUP) * heads * GROUP + h * GROUP + row % GROUP
    return row < tokens * GROUP, place


@triton.jit
def _tile(x, place, inside, start, WIDTH: tl.constexpr, LANES: tl.constexpr):
    """LANES columns from `start` on of the rows of x at `place`, padded with zeros."""
    lane = start + tl.arange(0, LANES)
    return tl.load(x + place[:, None] * WIDTH + lane[None, :], mask=inside[:, None] & (lane < WIDTH)[None, :], other=0)


@triton.jit
def _store(x, value, place, inside, start, WIDTH: tl.constexpr, LANES: tl.constexpr):
    lane = start + tl.arange(0, LANES)
    where = inside[:, None] & (lane < WIDTH)[None, :]
    tl.store(x + place[:, None] * WIDTH + lane[None, :], value.to(x.dtype.element_ty), mask=where)


@triton.jit
def _row(x, start, WIDTH: tl.constexpr, LANES: tl.constexpr):
    lane = start + tl.arange(0, LANES)
    return tl.load(x + lane, mask=lane < WIDTH, other=0)


@triton.jit
def _feature(x, tiny, FEATURE: tl.constexpr):
    if FEATURE == "elu1":
        x = tl.where(x > 0, x + 1, tl.exp(tl.minimum(x, 0.0)))
    elif FEATURE == "relu":
        x = tl.maximum(x, 0.0) + tiny
    return x


@triton.jit
def _slope(change, x, FEATURE: tl.constexpr):
    """The gradient in x from that in its feature."""
    if FEATURE == "elu1":
        change = tl.where(x > 0, change, change * tl.exp(tl.minimum(x, 0.0)))
    elif FEATURE == "relu":
        change = tl.where(x > 0, change, 0.0)
    return change


@triton.jit
def _read_out(c, eps, READ: tl.constexpr):
    """a(c) and b(c)."""
    b = tl.zeros_like(c)
    if READ == "quotient":
        a = 1 / (c + eps)
    elif READ == "clamped":
        a = 1 / tl.maximum(c, eps)
    elif READ == "shifted":
        a, b = b + 1, b + 1
    elif READ == "mala":
        a, b = 1 + 1 / (c + eps), -c
    return a, b


@triton.jit
def _read_out_slopes(c, eps, READ: tl.constexpr):
    """a'(c) and b'(c)."""
    da, db = tl.zeros_like(c), tl.zeros_like(c)
    if READ == "quotient":
        da = -1 / ((c + eps) * (c + eps))
    elif READ == "clamped":
        da = tl.where(c >= eps, -1 / (tl.maximum(c, eps) * tl.maximum(c, eps)), 0.0)
    elif READ == "mala":
        da, db = -1 / ((c + eps) * (c + eps)), db - 1
    return da, db


@triton.jit
def _weights(first, second, place, inside, eps, READ: tl.constexpr, GATE_K: tl.constexpr, GATE_V: tl.constexpr,
             BLOCK: tl.constexpr, ACC: tl.constexpr):  # fmt: skip
    """w, g and b of rows: from gates, or with a read-out from c and its gradient; zero where no row is."""
    if READ == "gates":
        g, b = tl.full((BLOCK,), 1, ACC), tl.full((BLOCK,), 1, ACC)
        if GATE_K:
            g = tl.load(first + place, mask=inside, other=0).to(ACC)
        if GATE_V:
            b = tl.load(second + place, mask=inside, other=0).to(ACC)
        w = g * b
    else:
        w, b = _read_out(tl.load(first + place, mask=inside, other=1), eps, READ)
        g = tl.load(second + place, mask=inside, other=0)
    return tl.where(inside, w, 0.0), tl.where(inside, g, 0.0), tl.where(inside, b, 0.0)


@triton.jit
def gather(x, t, y, first, second, s, z, u, tokens, heads, span, eps, tiny,
           F: tl.constexpr, V: tl.constexpr, BLOCK: tl.constexpr, LANES_F: tl.constexpr, LANES_V: tl.constexpr,
           GROUP: tl.constexpr, FEATURE: tl.constexpr, TURNED: tl.constexpr, READ: tl.constexpr,
           GATE_K: tl.constexpr, GATE_V: tl.constexpr, MOVE: tl.constexpr, PRECISION: tl.constexpr,
           ACC: tl.constexpr):  # fmt: skip
    """The part of S, z and u that `span` blocks of rows make, at LANES_F features."""
    TILES: tl.constexpr = (F + LANES_F - 1) // LANES_F
    which, split = tl.program_id(0) // TILES, tl.program_id(1)
    start = (tl.program_id(0) % TILES) * LANES_F
    b, h = which // heads, which % heads
    moment = tl.zeros((LANES_F, LANES_V), ACC)
    mass = tl.zeros((LANES_F,), ACC)
    total = tl.zeros((LANES_V,), ACC)
    for block in range(split * span, tl.minimum((split + 1) * span, tl.cdiv(tokens * GROUP, BLOCK))):
        inside, place = _rows(b, h, block, tokens, heads, BLOCK, GROUP)
        w, g, share = _weights(first, second, place, inside, eps, READ, GATE_K, GATE_V, BLOCK, ACC)
        feature = _feature(_tile(x, place, inside, start, F, LANES_F).to(ACC), tiny, FEATURE)
        value = _tile(y, place, inside, 0, V, LANES_V)
        mass += tl.sum(feature * g[:, None], 0)
        total += tl.sum(value.to(ACC) * share[:, None], 0)
        if TURNED:
            feature = _tile(t, place, inside, start, F, LANES_F).to(ACC)
        feature = (feature * w[:, None]).to(MOVE)
        moment += tl.dot(tl.trans(feature), value.to(MOVE), input_precision=PRECISION)
    at = split.to(tl.int64) * (tl.num_programs(0) // TILES) + which
    lane = start + tl.arange(0, LANES_F)
    _store(s + at * F * V, moment, lane, lane < F, 0, V, LANES_V)
    tl.store(z + at * F + lane, mass, mask=lane < F)
    column = tl.arange(0, LANES_V)
    if start == 0:
        tl.store(u + at * V + column, total, mask=column < V)


@triton.jit
def spread(x, t, first, second, s, z, u, c, o, tokens, heads, eps, tiny,
           F: tl.constexpr, V: tl.constexpr, BLOCK: tl.constexpr, LANES_F: tl.constexpr, LANES_V: tl.constexpr,
           GROUP: tl.constexpr, FEATURE: tl.constexpr, TURNED: tl.constexpr, READ: tl.constexpr,
           GATE_K: tl.constexpr, GATE_V: tl.constexpr, MOVE: tl.constexpr, PRECISION: tl.constexpr,
           ACC: tl.constexpr):  # fmt: skip
    """o = w (n(x) S) + b u; with a read-out, c too."""
    blocks = tl.cdiv(tokens * GROUP, BLOCK)
    which, block = (tl.program_id(0) // blocks).to(tl.int64), tl.program_id(0) % blocks
    inside, place = _rows(which // heads, which % heads, block, tokens, heads, BLOCK, GROUP)
    out = tl.zeros((BLOCK, LANES_V), ACC)
    mass = tl.zeros((BLOCK,), ACC)
    for start in tl.range(0, F, LANES_F, num_stages=1):
        if TURNED:
            turned = _tile(t, place, inside, start, F, LANES_F).to(MOVE)
        if READ != "gates" or not TURNED:
            feature = _feature(_tile(x, place, inside, start, F, LANES_F).to(ACC), tiny, FEATURE)
        if READ != "gates":
            mass += tl.sum(feature * _row(z + which * F, start, F, LANES_F)[None, :], 1)
        if not TURNED:
            turned = feature.to(MOVE)
        lane = start + tl.arange(0, LANES_F)
        out += tl.dot(turned, _tile(s + which * F * V, lane, lane < F, 0, V, LANES_V), input_precision=PRECISION)
    if READ == "gates":
        w, _g, b = _weights(first, second, place, inside, eps, READ, GATE_K, GATE_V, BLOCK, ACC)
    else:
        w, b = _read_out(mass, eps, READ)
        tl.store(c + place, mass, mask=inside)
    out = out * w[:, None] + b[:, None] * _row(u + which * V, 0, V, LANES_V)[None, :]
    _store(o, out, place, inside, 0, V, LANES_V)


@triton.jit
def _pulled(y, s, place, inside, start, F: tl.constexpr, V: tl.constexpr, BLOCK: tl.constexpr, LANES_F: tl.constexpr,
            LANES_C: tl.constexpr, MOVE: tl.constexpr, PRECISION: tl.constexpr, ACC: tl.constexpr):  # fmt: skip
    """y S^T at LANES_F features; y in parts, for all of it at once is more than the registers hold."""
    lane = start + tl.arange(0, LANES_F)
    found = tl.zeros((BLOCK, LANES_F), ACC)
    for column in tl.range(0, V, LANES_C, num_stages=1):
        value = _tile(y, place, inside, column, V, LANES_C).to(MOVE)
        moment = _tile(s, lane, lane < F, column, V, LANES_C)
        found += tl.dot(value, tl.trans(moment), input_precision=PRECISION)
    return found


@triton.jit
def pull(x, t, y, first, second, s, z, u, dx, dt, dfirst, dsecond, tokens, heads, eps, tiny,
         F: tl.constexpr, V: tl.constexpr, BLOCK: tl.constexpr, LANES_F: tl.constexpr, LANES_V: tl.constexpr,
         LANES_C: tl.constexpr, GROUP: tl.constexpr, FEATURE: tl.constexpr, TURNED: tl.constexpr,
         READ: tl.constexpr, GATE_K: tl.constexpr, GATE_V: tl.constexpr, MOVE: tl.constexpr, PRECISION: tl.constexpr,
         ACC: tl.constexpr):  # fmt: skip
    """Gradients of x and t, w y S^T and g z, and of what the weights came from: gates, or c (as dsecond).

    For keys, y are the values and S, z, u the gradients of those; for queries, y are the gradients of the outputs.
    """
    blocks = tl.cdiv(tokens * GROUP, BLOCK)
    which, block = (tl.program_id(0) // blocks).to(tl.int64), tl.program_id(0) % blocks
    inside, place = _rows(which // heads, which % heads, block, tokens, heads, BLOCK, GROUP)
    s, z, u = s + which * F * V, z + which * F, u + which * V
    if READ != "gates" or GATE_K or GATE_V:
        # y S^T comes twice, here for the gradients of weights, which the one of x may need: all of it does not fit
        both = tl.zeros((BLOCK,), ACC)
        alone = tl.zeros((BLOCK,), ACC)
        for start in tl.range(0, F, LANES_F, num_stages=1):
            feature = _feature(_tile(x, place, inside, start, F, LANES_F).to(ACC), tiny, FEATURE)
            if GATE_K:
                alone += tl.sum(feature * _row(z, start, F, LANES_F)[None, :], 1)
            if TURNED:
                feature = _tile(t, place, inside, start, F, LANES_F).to(ACC)
            pulled = _pulled(y, s, place, inside, start, F, V, BLOCK, LANES_F, LANES_C, MOVE, PRECISION, ACC)
            both += tl.sum(feature * pulled, 1)
        value = _tile(y, place, inside, 0, V, LANES_V).to(ACC)
        total = tl.sum(value * _row(u, 0, V, LANES_V)[None, :], 1)
    if READ == "gates":
        w, g, b = _weights(first, second, place, inside, eps, READ, GATE_K, GATE_V, BLOCK, ACC)
        if GATE_K:
            tl.store(dfirst + place, both * b + alone, mask=inside)
        if GATE_V:
            tl.store(dsecond + place, both * g + total, mask=inside)
    else:
        c = tl.load(first + place, mask=inside, other=1)
        w, b = _read_out(c, eps, READ)
        dw, db = _read_out_slopes(c, eps, READ)
        g = dw * both + db * total
        tl.store(dsecond + place, g, mask=inside)
    for start in tl.range(0, F, LANES_F, num_stages=1):
        pulled = _pulled(y, s, place, inside, start, F, V, BLOCK, LANES_F, LANES_C, MOVE, PRECISION, ACC)
        pulled *= w[:, None]
        change = g[:, None] * _row(z, start, F, LANES_F)[None, :]
        if TURNED:
            _store(dt, pulled, place, inside, start, F, LANES_F)
        else:
            change += pulled
        raw = _tile(x, place, inside, start, F, LANES_F).to(ACC)
        _store(dx, _slope(change, raw, FEATURE), place, inside, start, F, LANES_F)


def wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def moving(dtype: torch.dtype, device: str) -> torch.dtype:
    """The type of the operands of products: float16 has no range for moments, the interpreter no bfloat16."""
    return torch.bfloat16 if dtype == torch.bfloat16 and device != "cpu" else wide(dtype)


def constants(
    dtype: torch.dtype, widths: tuple[int, int], *, device: str, group: int = 1, feature: str = "none",
    turned: bool = False, readout: str = "gates", gates: tuple[bool, bool] = (False, False),
) -> dict[str, object]:  # fmt: skip
    """The kernels' compile-time arguments, for values (or outputs) of `dtype`."""
    move = moving(dtype, device)
    block = 64 if dtype in (torch.bfloat16, torch.float16) else 32
    lanes_f, lanes_v = (max(16, triton.next_power_of_2(width)) for width in widths)
    return {
        "F": widths[0], "V": widths[1], "GROUP": group, "FEATURE": feature, "TURNED": turned, "READ": readout,
        "GATE_K": gates[0], "GATE_V": gates[1], "BLOCK": block, "LANES_F": min(block, lanes_f), "LANES_V": lanes_v,
        "LANES_C": min(block, lanes_v),
        "MOVE": {torch.bfloat16: tl.bfloat16, torch.float32: tl.float32, torch.float64: tl.float64}[move],
        # float16 has no more digits than tf32; float32 is put together from three products
        "PRECISION": "tf32x3" if dtype == torch.float32 else "tf32",
        "ACC": tl.float64 if dtype == torch.float64 else tl.float32,
    }  # fmt: skip


def schedule(kernel: triton.JITFunction, fixed: dict[str, object]) -> dict[str, int]:
    """Warps, stages, registers: chosen so that the shipped sizes do not spill, not yet by measuring."""
    tile = fixed["BLOCK"] * fixed["LANES_V"] * fixed["MOVE"].primitive_bitwidth // 8
    # a short tile takes more registers than a whole one
    large = tile + (fixed["V"] < fixed["LANES_V"]) > 16384
    return {"num_warps": 8 if kernel is spread or large else 4, "num_stages": 2, "maxnreg": REGISTERS}


def builds(
    dtype: torch.dtype, widths: tuple[int, int], *, readout: str, gates: tuple[bool, bool] = (False, False),
    turned: bool = False, feature: str = "none", group: int = 1, kept: bool = False,
) -> list[Build]:  # fmt: skip
    """What a call with its backward compiles, for compiling ahead of time; kept: x are features that came ready."""
    how = {"device": "cuda", "turned": turned, "feature": feature}
    keys = constants(dtype, widths, gates=gates, **how)
    queries = constants(dtype, widths, readout=readout, group=group, **how)
    return [_build(kernel, fixed, dtype, kept) for fixed in (keys, queries) for kernel in (gather, spread, pull)]


def _build(kernel: triton.JITFunction, fixed: dict[str, object], dtype: torch.dtype, kept: bool) -> Build:
    stored = {torch.bfloat16: "*bf16", torch.float16: "*fp16", torch.float32: "*fp32"}[dtype]
    moved = "*bf16" if fixed["MOVE"] == tl.bfloat16 else "*fp32"
    types = {"tokens": "i32", "heads": "i32", "span": "i32", "eps": "fp32", "tiny": "fp32"}
    types |= dict.fromkeys(("y", "o"), stored) | dict.fromkeys(("t", "dt"), moved)
    types |= dict.fromkeys(("x", "dx"), moved if kept else stored)
    types |= {} if kernel is gather else {"s": moved}
    keys = fixed["READ"] == "gates"
    absent = set() if fixed["TURNED"] else {"t", "dt"}
    absent |= {"c"} if keys else {"dfirst"} if kernel is pull else {"first", "second"} if kernel is spread else set()
    if keys:
        absent |= {name for name in ("first", "dfirst") if not fixed["GATE_K"]}
        absent |= {name for name in ("second", "dsecond") if not fixed["GATE_V"]}
    names = [name for name in kernel.arg_names if name not in fixed]
    given = {name: value for name, value in fixed.items() if name in kernel.arg_names}
    given |= {name: None for name in names if name in absent}
    how = schedule(kernel, fixed)
    types = {name: types.get(name, "*fp32") for name in names if name not in absent}
    return Build(kernel, types, given, how["num_warps"], how["num_stages"], how["maxnreg"])
