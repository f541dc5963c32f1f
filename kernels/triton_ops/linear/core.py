"""The gated delta recurrence of linear/base.py on a GPU, in chunks: the launches, forward and backward.

    forward   [fade]  [solve]  states  outputs
    backward  [fade]  [solve]  states  (value_gradients  state_gradients, in the order that the delta rule asks for)
              key_gradients  [solve_gradients]  [fade_gradients]

fade (vector.py) is for decays by channel, solve (wy.py) for the delta rule, states for all (scan.py), the rest is in
inside.py. Everything between the inputs and the outputs is made again in the backward, but for the solution's matrix.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from gnomon.kernels.op import Result, State
from gnomon.kernels.triton_ops.aot import Build, constant_names
from gnomon.kernels.triton_ops.launch import REGISTERS
from gnomon.kernels.triton_ops.linear import decode
from gnomon.kernels.triton_ops.linear import unit as units
from gnomon.kernels.triton_ops.linear.inside import key_gradients, outputs, value_gradients
from gnomon.kernels.triton_ops.linear.scan import state_gradients, states
from gnomon.kernels.triton_ops.linear.vector import fade, fade_gradients
from gnomon.kernels.triton_ops.linear.wy import solve, solve_gradients

CHUNKS = {"none": 64, "scalar": 64, "vector": 32}
"""Tokens of a chunk by kind of decay; by channel it takes log2 of them products, and as many registers."""

CHUNK_FLOAT32 = 32
"""At most so many of float32, whose products are three, of operands that are split in two."""

SIZES = {
    states: (64, 64, 4, 2),
    outputs: (64, 64, 4, 2),
    value_gradients: (64, 64, 4, 2),
    state_gradients: (64, 64, 4, 3),
    key_gradients: (32, 32, 8, 2),
    solve: (64, 64, 4, 2),
    solve_gradients: (32, 32, 8, 1),
    fade: (64, 64, 8, 1),
    fade_gradients: (64, 64, 8, 1),
}
"""Columns of keys and values of a tile, warps, stages."""

SIZES_FLOAT32 = {
    states: (32, 32, 4, 1),
    outputs: (16, 32, 4, 1),
    value_gradients: (32, 32, 4, 1),
    state_gradients: (32, 32, 4, 1),
    key_gradients: (16, 16, 4, 1),
    solve: (32, 32, 4, 1),
    solve_gradients: (16, 16, 4, 1),
    fade: (16, 16, 4, 1),
    fade_gradients: (8, 8, 4, 1),
}


def chunk(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    causal: bool,
    scale: float,
    state: State,
    g: Tensor | None = None,
    beta: Tensor | None = None,
    normalize: bool = False,
    block: int = 64,
    cu_seqlens: Tensor | None = None,
) -> Result:
    """As `chunk` of linear/base.py, but for `block`: the kernels' chunks are fixed. One token without gradients is a
    kernel of its own. float32 is multiplied as three products of TF32; float16 holds no state beyond 65504.

    state["s"] (N,H,K,V): a row for each of B, or with cu_seqlens (N+1,) for each sequence packed into the one row.
    """
    start, dtype = state["s"].contiguous(), q.dtype
    q, k, v = (x.to(dtype).contiguous() for x in (q, k, v))
    g, beta = (None if x is None else x.expand(*q.shape[:2], *x.shape[2:]).contiguous() for x in (g, beta))
    tensors = [x for x in (q, k, v, g, beta, start) if x is not None]
    grad = torch.is_grad_enabled() and any(x.requires_grad for x in tensors)
    if q.shape[1] == 1 and cu_seqlens is None and not grad:
        return decode.step(q, k, v, g, beta, start, scale=scale, normalize=normalize)
    if normalize:
        q, k = units.unit(q), units.unit(k)
    o, final = _Chunk.apply(q, k, v, g, beta, start, scale, cu_seqlens)
    return o, {"s": final}


class _Chunk(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: FunctionCtx, q: Tensor, k: Tensor, v: Tensor, g: Tensor | None, beta: Tensor | None, start: Tensor,
        scale: float, cu_seqlens: Tensor | None,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        call = Launch.of(q, k, v, g, beta, start, scale, cu_seqlens)
        made = call.prepare(None)
        o = torch.empty_like(v)
        call(outputs, made, o=o)
        ctx.save_for_backward(q, k, v, g, beta, start, cu_seqlens, made.get("m"))
        ctx.scale = scale
        ctx.set_materialize_grads(True)
        return o, made["final"]

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, do: Tensor, dfinal: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, g, beta, start, cu_seqlens, m = ctx.saved_tensors
        call = Launch.of(q, k, v, g, beta, start, ctx.scale, cu_seqlens)
        made = call.prepare(m)
        made |= {"do": do.contiguous(), "dfinal": dfinal.contiguous()}
        found = call.gradients(made, gates=ctx.needs_input_grad[3])
        return *(found.get(name) for name in ("dq", "dk", "dv", "dg", "dbeta", "dstart")), None, None


@dataclass(frozen=True)
class Launch:
    """One call: its inputs by the kernels' names for them, and what is fixed at compile time."""

    given: Mapping[str, object]
    fixed: Mapping[str, object]
    chunks: int
    sequences: int

    @classmethod
    def of(
        cls, q: Tensor, k: Tensor, v: Tensor, g: Tensor | None, beta: Tensor | None, start: Tensor, scale: float,
        cu_seqlens: Tensor | None,
    ) -> Launch:  # fmt: skip
        rows, length, heads, width = q.shape
        decay = "none" if g is None else "scalar" if g.ndim == 3 else "vector"
        given: dict[str, object] = {
            "q": q, "k": k, "v": v, "start": start, "scale": scale, "length": length, "heads": heads,
            "tokens": rows * length,
        }  # fmt: skip
        given |= {name: x for name, x in (("g", g), ("beta", beta)) if x is not None}
        fixed = constants(
            q.dtype, width, v.shape[3], decay=decay, delta=beta is not None, packed=cu_seqlens is not None
        )
        size = fixed["CHUNK"]
        given["levels"] = size.bit_length() - 1
        chunks = rows * triton.cdiv(length, size)
        if cu_seqlens is not None:
            chunks = length // size + len(cu_seqlens) - 1
            given |= zip(("starts", "stops", "first"), chunk_table(cu_seqlens, size, chunks))
        return cls(given, fixed, chunks, len(start))

    def prepare(self, m: Tensor | None) -> dict[str, Tensor]:
        """Everything that outputs and gradients start from, by the kernels' names: `k` and `v` as their chunk sees
        them, the states, and the final one. m: the solution's matrix, when it is known."""
        q, k, v, start = (self.given[name] for name in ("q", "k", "v", "start"))
        chunks, heads, (width, value_width) = self.chunks, q.shape[2], start.shape[2:]
        decay, delta = self.fixed["DECAY"], self.fixed["DELTA"]
        made: dict[str, Tensor] = {}

        def square(like: Tensor) -> Tensor:
            return like.new_empty((*q.shape[:3], self.fixed["CHUNK"]))

        if decay == "vector":
            made = {"qs": torch.empty_like(q), "ke": torch.empty_like(k), "a": square(q)}
            made["carry"] = start.new_empty((chunks, heads, width))
            if delta:
                made |= {"ks": torch.empty_like(k), "e": square(start)}
            self(fade, made)
            made |= {"q": made["qs"], "k": made["ke"]}
        if delta:
            made |= {"m": square(q) if m is None else m, "w": torch.empty_like(k), "u": torch.empty_like(v)}
            self(solve, made, SOLVED=m is not None, k=made.get("ks", k))
            made |= {"v": made["u"], "written": torch.empty_like(v)}
        made |= {"s": q.new_empty((chunks, heads, width, value_width)), "final": torch.empty_like(start)}
        self(states, made)
        if delta:
            made["v"] = made["written"]
        return made

    def gradients(self, made: dict[str, Tensor], *, gates: bool) -> dict[str, Tensor]:
        q, k, v, start = (self.given[name] for name in ("q", "k", "v", "start"))
        decay, delta = self.fixed["DECAY"], self.fixed["DELTA"]
        found = {"dq": torch.empty_like(q), "dk": torch.empty_like(k), "dv": torch.empty_like(v)}
        found |= {"dstart": torch.empty_like(start), "ds": torch.empty_like(made["s"])}
        if delta:
            found["dw"] = torch.empty_like(k)
        if decay == "vector":
            found |= {"da": torch.empty_like(made["a"]), "dcarry": torch.empty_like(made["carry"])}
        for kernel in (value_gradients, state_gradients) if delta else (state_gradients, value_gradients):
            self(kernel, {**made, **found})
        gates = decay == "vector" or (gates and decay == "scalar")
        if gates and decay == "scalar":
            parts = triton.cdiv(q.shape[3], sizes(key_gradients, self.fixed)["BLOCK_K"])
            found["dg"] = start.new_empty((parts, *self.given["g"].shape))
        self(key_gradients, {**made, **found}, GATES=gates)
        if delta:
            found["dbeta"] = start.new_empty(self.given["beta"].shape)
            if decay == "vector":
                found["de"] = torch.empty_like(made["e"])
            raw = {"v": v, "k": made.get("ks", k)}
            self(solve_gradients, {**made, **found, **raw}, GATES=gates and decay == "scalar")
            found["dbeta"] = found["dbeta"].to(self.given["beta"].dtype)
        if decay == "vector":
            faded = {"dqs": found["dq"], "dke": found["dk"], "dks": found.get("dw", q)}
            found |= {"dq": torch.empty_like(q), "dk": torch.empty_like(k), "dg": torch.empty_like(self.given["g"])}
            self(fade_gradients, {**made, **found, **faded, "q": q, "k": k})
        elif gates:
            found["dg"] = found["dg"].sum(0).to(self.given["g"].dtype)
        return found

    def __call__(self, kernel: triton.JITFunction, tensors: Mapping[str, Tensor], **more: object) -> None:
        fixed = {**self.fixed, **sizes(kernel, self.fixed), **more}
        missing = constant_names(kernel) - set(fixed)
        assert not missing, f"{kernel.__name__}: {sorted(missing)} would be compiled anew for each q"
        # what a variant does not read may be anything
        q = self.given["q"]
        given = {**dict.fromkeys(kernel.arg_names, q), **self.given, **tensors, **fixed}
        with torch.cuda.device_of(q):
            kernel[(grid(kernel, fixed, chunks=self.chunks, sequences=self.sequences, heads=q.shape[2]),)](
                **{name: given[name] for name in kernel.arg_names},
                num_warps=fixed["WARPS"],
                num_stages=fixed["STAGES"],
                maxnreg=fixed["REGISTERS"],
            )


def grid(kernel: triton.JITFunction, fixed: Mapping[str, object], *, chunks: int, sequences: int, heads: int) -> int:
    """Programs of a launch."""
    tiles_k = triton.cdiv(fixed["K"], fixed["BLOCK_K"])
    tiles_v = triton.cdiv(fixed["V"], fixed["BLOCK_V"])
    if kernel in (states, state_gradients):
        return sequences * heads * tiles_k * tiles_v
    if kernel in (outputs, value_gradients):
        return chunks * heads * tiles_v
    return chunks * heads * (tiles_k if kernel in (key_gradients, fade_gradients) else 1)


def chunk_table(cu_seqlens: Tensor, size: int, chunks: int) -> tuple[Tensor, Tensor, Tensor]:
    """Start of each chunk, end of its sequence, and the first chunk of each sequence; nothing waits for the device.

    There may be fewer chunks than `chunks`: those left over are empty.
    """
    ends = cu_seqlens.long()
    first = torch.nn.functional.pad((ends.diff() + size - 1).div(size, rounding_mode="floor").cumsum(0), (1, 0))
    number = torch.arange(chunks, device=ends.device)
    row = (torch.searchsorted(first, number, right=True) - 1).clamp(max=len(ends) - 2)
    start, stop = ends[row] + (number - first[row]) * size, ends[row + 1]
    return torch.minimum(start, stop).int(), stop.int(), first.int()


def constants(
    dtype: torch.dtype, width: int, value_width: int, *, decay: str, delta: bool, packed: bool
) -> dict[str, object]:
    """The kernels' compile-time arguments that are one for all."""
    precision = "tf32x3" if dtype in (torch.float32, torch.float64) else "tf32"
    size = min(CHUNKS[decay], CHUNK_FLOAT32) if dtype == torch.float32 else CHUNKS[decay]
    return {
        "K": width, "V": value_width, "CHUNK": size, "DECAY": decay, "DELTA": delta,
        "PACKED": packed, "PRECISION": precision, "ACC": tl.float64 if dtype == torch.float64 else tl.float32,
    }  # fmt: skip


def sizes(kernel: triton.JITFunction, fixed: Mapping[str, object]) -> dict[str, int | None]:
    """Tiles, warps, stages and registers: chosen so that nothing spills, not yet by measuring."""
    lanes_k, lanes_v = (max(16, triton.next_power_of_2(fixed[name])) for name in "KV")
    narrow = fixed["PRECISION"] == "tf32"
    block_k, block_v, warps, stages = (SIZES if narrow else SIZES_FLOAT32)[kernel]
    if fixed["DELTA"] and kernel in (states, state_gradients):
        # the rule reads a state by all its rows
        block_k, block_v, warps, stages = lanes_k, 32, 4 if lanes_k <= 64 else 8, 2
        if not narrow or lanes_k > 128:
            block_v, warps, stages = 16, 8, 1
    unsure = kernel in (states, state_gradients, solve, solve_gradients)
    if lanes_k > 128:
        # tiles of twice the size
        stages = 1
        if narrow and fixed["K"] < lanes_k and kernel in (outputs, value_gradients):
            # the last one is short, which takes more
            block_v, unsure = 32, True
    return {
        "BLOCK_K": min(block_k, lanes_k), "BLOCK_V": min(block_v, lanes_v), "WARPS": warps, "STAGES": stages,
        # the assembler's own number spills in these, and spills less in the others
        "REGISTERS": REGISTERS if unsure or not narrow else None,
    }  # fmt: skip


def builds(
    dtype: str, width: int, value_width: int, *, decay: str, delta: bool, packed: bool = False, learned: bool = True,
    gates: str = "fp32",
) -> list[Build]:  # fmt: skip
    """What calls compile, for compiling ahead of time; dtype, and gates of g and beta: bf16, fp16 or fp32.

    learned: g has a gradient. The delta rule's keys may be normalised or not.
    """
    types = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
    fixed = constants(types[dtype], width, value_width, decay=decay, delta=delta, packed=packed)
    kernels = [states, outputs, value_gradients, state_gradients, key_gradients]
    kernels += [solve, solve_gradients] if delta else []
    kernels += [fade, fade_gradients] if decay == "vector" else []
    wide = ("g", "beta", "start", "final", "dstart", "dfinal", "carry", "dcarry", "dg", "dbeta", "e", "de")
    known = {**dict.fromkeys(wide, "*fp32"), **dict.fromkeys(("starts", "stops", "first"), "*i32")}
    known |= {"g": f"*{gates}", "beta": f"*{gates}", "dg": f"*{gates}" if decay == "vector" else "*fp32"}
    known |= {"scale": "fp32", "length": "i32", "heads": "i32", "tokens": "i32", "levels": "i32", "count": "i32"}
    found = []

    def add(kernel: triton.JITFunction, mine: Mapping[str, object]) -> None:
        constant = {name: x for name, x in mine.items() if name in kernel.arg_names}
        others = {name: known.get(name, f"*{dtype}") for name in kernel.arg_names if name not in mine}
        found.append(
            Build(kernel, others, constant, mine.get("WARPS", 4), mine.get("STAGES", 2), mine.get("REGISTERS"))
        )

    scalar = decay == "scalar" and learned
    for kernel in kernels:
        gated = {"GATES": scalar or (decay == "vector" and kernel is key_gradients)}
        # the backward knows the solution's matrix
        for solved in (False, True) if kernel is solve else (False,):
            add(kernel, {**fixed, **sizes(kernel, fixed), **gated, "SOLVED": solved})
    for normalize in (False, True) if delta else (False,):
        more = {"decay": decay, "delta": delta, "normalize": normalize}
        add(decode.advance, {**decode.constants(types[dtype], width, value_width, **more), "REGISTERS": REGISTERS})
        if normalize:
            for kernel in (units.forward, units.backward):
                add(kernel, {**units.constants(types[dtype], width), "REGISTERS": REGISTERS})
    return found
