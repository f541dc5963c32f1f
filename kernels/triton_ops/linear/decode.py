"""One token: decay, erase, write and read in one pass over the state, which is all the traffic there is."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from gnomon.kernels.op import Result
from gnomon.kernels.triton_ops.launch import REGISTERS
from gnomon.kernels.triton_ops.linear.unit import EPSILON


@triton.jit
def advance(q, k, v, g, beta, start, o, final, scale, K: tl.constexpr, V: tl.constexpr, LANES_K: tl.constexpr,
            BLOCK_V: tl.constexpr, DECAY: tl.constexpr, DELTA: tl.constexpr, NORMALIZE: tl.constexpr,
            ACC: tl.constexpr):  # fmt: skip
    tiles: tl.constexpr = (V + BLOCK_V - 1) // BLOCK_V
    row = (tl.program_id(0) // tiles).to(tl.int64)
    lane_k, lane_v = tl.arange(0, LANES_K), tl.program_id(0) % tiles * BLOCK_V + tl.arange(0, BLOCK_V)
    in_k, in_v = lane_k < K, lane_v < V
    at = row * K * V + lane_k[:, None] * V + lane_v[None, :]
    inside = in_k[:, None] & in_v[None, :]
    state = tl.load(start + at, mask=inside, other=0).to(ACC)
    query = tl.load(q + row * K + lane_k, mask=in_k, other=0).to(ACC)
    key = tl.load(k + row * K + lane_k, mask=in_k, other=0).to(ACC)
    value = tl.load(v + row * V + lane_v, mask=in_v, other=0).to(ACC)
    if NORMALIZE:
        query *= tl.rsqrt(tl.sum(query * query, 0) + EPSILON)
        key *= tl.rsqrt(tl.sum(key * key, 0) + EPSILON)
    if DECAY == "scalar":
        state *= tl.exp(tl.load(g + row).to(ACC))
    if DECAY == "vector":
        state *= tl.exp(tl.load(g + row * K + lane_k, mask=in_k, other=0).to(ACC))[:, None]
    if DELTA:
        value = tl.load(beta + row).to(ACC) * (value - tl.sum(key[:, None] * state, 0))
    state += key[:, None] * value[None, :]
    tl.store(final + at, state, mask=inside)
    tl.store(o + row * V + lane_v, (scale * tl.sum(query[:, None] * state, 0)).to(o.dtype.element_ty), mask=in_v)


def step(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor | None, beta: Tensor | None, start: Tensor, *, scale: float,
    normalize: bool,
) -> Result:  # fmt: skip
    """Contiguous tensors of one token, (B,1,H,...), and the state (B,H,K,V), which is left as it is."""
    o, final = torch.empty_like(v), torch.empty_like(start)
    decay = "none" if g is None else "scalar" if g.ndim == 3 else "vector"
    fixed = constants(q.dtype, *start.shape[2:], decay=decay, delta=beta is not None, normalize=normalize)
    programs = start.shape[0] * start.shape[1] * triton.cdiv(fixed["V"], fixed["BLOCK_V"])
    with torch.cuda.device_of(q):
        # what a variant does not read may be anything
        advance[(programs,)](
            q, k, v, q if g is None else g, q if beta is None else beta, start, o, final, scale, **fixed, num_warps=4,
            maxnreg=REGISTERS,
        )  # fmt: skip
    return o, {"s": final}


def constants(
    dtype: torch.dtype, width: int, value_width: int, *, decay: str, delta: bool, normalize: bool
) -> dict[str, object]:
    lanes = max(16, triton.next_power_of_2(width))
    # 2048 numbers of the state are 16 registers of each thread
    block = max(1, min(triton.next_power_of_2(value_width), 2048 // lanes))
    return {
        "K": width, "V": value_width, "LANES_K": lanes, "BLOCK_V": block, "DECAY": decay, "DELTA": delta,
        "NORMALIZE": normalize, "ACC": tl.float64 if dtype == torch.float64 else tl.float32,
    }  # fmt: skip
