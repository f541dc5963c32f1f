"""Vectors of length one (`unit` of linear/base.py) in one pass, and the gradient in another."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from gnomon.kernels.triton_ops.launch import REGISTERS

EPSILON = tl.constexpr(1e-6)
ROWS = 16


@triton.jit
def forward(x, y, count, K: tl.constexpr, LANES: tl.constexpr, ROWS: tl.constexpr, ACC: tl.constexpr):
    row, lane = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS), tl.arange(0, LANES)
    at, inside = row[:, None] * K + lane[None, :], (row < count)[:, None] & (lane < K)[None, :]
    value = tl.load(x + at, mask=inside, other=0).to(ACC)
    length = tl.rsqrt(tl.sum(value * value, 1) + EPSILON)
    tl.store(y + at, (value * length[:, None]).to(y.dtype.element_ty), mask=inside)


@triton.jit
def backward(x, dy, dx, count, K: tl.constexpr, LANES: tl.constexpr, ROWS: tl.constexpr, ACC: tl.constexpr):
    row, lane = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS), tl.arange(0, LANES)
    at, inside = row[:, None] * K + lane[None, :], (row < count)[:, None] & (lane < K)[None, :]
    value = tl.load(x + at, mask=inside, other=0).to(ACC)
    change = tl.load(dy + at, mask=inside, other=0).to(ACC)
    length = tl.rsqrt(tl.sum(value * value, 1) + EPSILON)[:, None]
    value *= length
    along = tl.sum(value * change, 1)[:, None]
    tl.store(dx + at, (length * (change - value * along)).to(dx.dtype.element_ty), mask=inside)


def constants(dtype: torch.dtype, width: int) -> dict[str, object]:
    acc = tl.float64 if dtype == torch.float64 else tl.float32
    return {"K": width, "LANES": triton.next_power_of_2(width), "ROWS": ROWS, "ACC": acc}


def _launch(kernel: triton.JITFunction, *tensors: Tensor) -> None:
    x = tensors[0]
    count, width = x.numel() // x.shape[-1], x.shape[-1]
    with torch.cuda.device_of(x):
        how = {**constants(x.dtype, width), "num_warps": 4, "maxnreg": REGISTERS}
        kernel[(triton.cdiv(count, ROWS),)](*tensors, count, **how)


class _Unit(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        y = torch.empty_like(x)
        _launch(forward, x, y)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, dy: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        dx = torch.empty_like(x)
        _launch(backward, x, dy.contiguous(), dx)
        return dx


def unit(x: Tensor) -> Tensor:
    return _Unit.apply(x.contiguous())
