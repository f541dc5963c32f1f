"""Block-sparse attention that follows lists of blocks, forward and backward, with SLA's linear branch if wanted.

One program per tile of queries and head runs through its block's list with an online softmax; the gradients of q are
taken the same way, those of k and v through the lists of the keys, so nothing needs atomic additions (passes.py). Lists
come from a mask (`attend`, for every static pattern) or from a selection (sla.py, infllm_v2.py beside this file).

Rows: a token may bring `group` rows, its query heads that share one key head: q (B,T,H,D), k (B,K,H/group,D).
Linear branch, when `feature` is given: row i of block of queries m adds (f_i S_m) / (f_i z_m), and nothing for 0 / 0.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
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
from gnomon.kernels.triton_ops.launch import REGISTERS
from gnomon.kernels.triton_ops.sparse.lists import Lists, from_mask
from gnomon.kernels.triton_ops.sparse.passes import backward_keys, backward_queries, backward_rows, forward


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
        fixed |= sizes(kernel, fixed)
        many = self.table.blocks[1 if kernel is backward_keys else 0]
        given = {
            **tensors, **fixed, "q": self.q, "k": self.k, "v": self.v, "scale": self.scale * math.log2(math.e),
            "factor": self.scale, "queries": self.q.shape[1], "keys": self.k.shape[1], "heads": heads, "many": many,
            "past": self.past or 0, "list_rows": self.table.rows, "list_heads": self.table.heads,
        }  # fmt: skip
        with torch.cuda.device_of(self.q):
            kernel[(many * len(self.q) * heads * parts(kernel, fixed),)](
                **{name: given[name] for name in kernel.arg_names}, **schedule(kernel, fixed)
            )


def constants(
    dtype: torch.dtype, width: int, value_width: int, block: tuple[int, int], *, group: int = 1, causal: bool = False,
    partial: bool = False, feature: int | None = None,
) -> dict[str, object]:  # fmt: skip
    """The kernels' compile-time arguments that are one for all."""
    lanes = {"D": width, "V": value_width, "E": feature or 1}
    return {
        "D": width, "V": value_width, "E": feature or 1, "BLOCK_Q": block[0], "BLOCK_K": block[1],
        **{f"LANES_{name}": _lanes(size) for name, size in lanes.items()},
        "GROUP": group, "CAUSAL": causal, "PARTIAL": partial, "LINEAR": feature is not None,
        # float32 is put together from three products of tf32; what is narrower has one precision anyway
        "PRECISION": "tf32x3" if dtype in (torch.float32, torch.float64) else "tf32",
        "ACC": tl.float64 if dtype == torch.float64 else tl.float32,
    }  # fmt: skip


def sizes(kernel: triton.JITFunction, fixed: Mapping[str, object]) -> dict[str, int]:
    """Rows and keys of a tile, columns of a strip: so many that no GPU of aot.py spills, not yet chosen by measuring.
    What heads do not fit even so, `twin_refuses` of sparse/base.py says."""
    single, large = fixed["PRECISION"] == "tf32x3", _row(fixed) > 256
    lanes_q = lanes_k = strip = 32 if single else 64
    if large:
        lanes_q = 16 if single else 64 if kernel is forward and not fixed["LINEAR"] else 32
        lanes_k = 16 if single and kernel is backward_keys else 32
        if kernel is backward_rows:
            lanes_q = strip = 16
    return {
        "LANES_Q": min(lanes_q, _lanes(fixed["BLOCK_Q"])), "LANES_K": min(lanes_k, _lanes(fixed["BLOCK_K"])),
        "LANES_C": strip,
    }  # fmt: skip


def schedule(kernel: triton.JITFunction, fixed: Mapping[str, object]) -> dict[str, int]:
    """Warps, stages, registers, chosen as `sizes` are."""
    # how long a row may be for a second stage
    pipelined = {forward: 512, backward_queries: 256, backward_keys: 128, backward_rows: 0}[kernel]
    stages = 2 if fixed["PRECISION"] == "tf32" and _row(fixed) <= pipelined else 1
    small = fixed["BLOCK_Q"] < 32 and _row(fixed) <= 256
    return {"num_warps": 4 if small else 8, "num_stages": stages, "maxnreg": REGISTERS}


def _row(fixed: Mapping[str, object]) -> int:
    """Bytes of the widest row."""
    return max(fixed[f"LANES_{name}"] for name in "DVE") * (4 if fixed["PRECISION"] == "tf32x3" else 2)


def _lanes(size: int) -> int:
    """The least power of two that a product takes."""
    return max(16, triton.next_power_of_2(size))


def parts(kernel: triton.JITFunction, fixed: Mapping[str, object]) -> int:
    """Programs for a block."""
    if kernel is backward_rows:
        return 1
    side = "K" if kernel is backward_keys else "Q"
    return triton.cdiv(fixed[f"BLOCK_{side}"], fixed[f"LANES_{side}"])


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
    types |= dict.fromkeys(("queries", "keys", "heads", "past", "many", "list_rows", "list_heads"), "i32")
    types |= {"scale": "fp32", "factor": "fp32", "bits": "*i64"}
    found = []
    for kernel in (forward, backward_rows, backward_queries, backward_keys):
        mine = {**fixed, **sizes(kernel, fixed)}
        mine = {name: value for name, value in mine.items() if name in kernel.arg_names}
        others = {name: types.get(name, "*i32") for name in kernel.arg_names if name not in mine}
        how = schedule(kernel, fixed)
        found.append(Build(kernel, others, mine, how["num_warps"], how["num_stages"], how["maxnreg"]))
    return found
