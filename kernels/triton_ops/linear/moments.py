"""The operators of core M, noncausal: what each makes of moments between the passes of `moment_kernels`.

Sums over tokens are split into parts that do not depend on the device, and these are added by PyTorch: no atomic
additions, the same bits again. What happens to S, z and u between the passes (means, scales, temperatures) is
PyTorch's, with its gradients.

Shapes: x (q or k) (B,T,H,F), y (do or v) (B,T,H,V), S (B,L,F,V), z (B,L,F), u (B,L,V), gates and c (B,T,H).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import triton
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from gnomon.kernels import moments as core
from gnomon.kernels.linear import nalaformer as nala
from gnomon.kernels.op import Result, State
from gnomon.kernels.triton_ops.launch import PROGRAMS
from gnomon.kernels.triton_ops.linear.moment_kernels import constants, gather, moving, pull, schedule, spread, wide


@dataclass(frozen=True)
class _Pass:
    """What the kernels over one side's tokens have in common: x and t (or None) and weights, `heads` of the moments."""

    x: Tensor
    t: Tensor | None
    first: Tensor | None
    second: Tensor | None
    heads: int
    feature: str
    tiny: float
    readout: str = "gates"
    eps: float = 0.0

    def fixed(self, y: Tensor) -> dict[str, object]:
        gates = (self.first is not None, self.second is not None)
        return constants(
            y.dtype, (self.x.shape[3], y.shape[3]), device=y.device.type, group=self.x.shape[2] // self.heads,
            feature=self.feature, turned=self.t is not None, readout=self.readout,
            gates=gates if self.readout == "gates" else (False, False),
        )  # fmt: skip

    def __call__(self, kernel: triton.JITFunction, y: Tensor, grid: tuple[int, ...] = (), **more: object) -> None:
        fixed = self.fixed(y)
        tokens = self.x.shape[1]
        grid = grid or (len(y) * self.heads * triton.cdiv(tokens * fixed["GROUP"], fixed["BLOCK"]),)
        given = {**vars(self), **fixed, "y": y, "tokens": tokens, **more}
        with torch.cuda.device_of(y):
            kernel[grid](**{name: given[name] for name in kernel.arg_names}, **schedule(kernel, fixed))

    def sums(self, y: Tensor) -> tuple[Tensor, ...]:
        """S, z and u, in two stages."""
        fixed, (batch, tokens, _, width) = self.fixed(y), self.x.shape
        blocks = triton.cdiv(tokens * fixed["GROUP"], fixed["BLOCK"])
        programs = batch * self.heads * triton.cdiv(width, fixed["LANES_F"])
        span = triton.cdiv(blocks, min(blocks, triton.cdiv(PROGRAMS, programs)))
        splits = triton.cdiv(blocks, span)
        sizes = ((width, y.shape[3]), (width,), (y.shape[3],))
        parts = [torch.empty((splits, batch, self.heads, *n), dtype=wide(y.dtype), device=y.device) for n in sizes]
        self(gather, y, (programs, splits), span=span, **dict(zip("szu", parts)))
        return tuple(part.sum(0) if splits > 1 else part[0] for part in parts)


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: FunctionCtx, x: Tensor, t: Tensor | None, y: Tensor, gate_k: Tensor | None, gate_v: Tensor | None,
        feature: str, tiny: float,
    ) -> tuple[Tensor, ...]:  # fmt: skip
        ctx.save_for_backward(x, t, y, gate_k, gate_v)
        ctx.how = feature, tiny
        return _Pass(x, t, gate_k, gate_v, x.shape[2], feature, tiny).sums(y)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, ds: Tensor, dz: Tensor, du: Tensor) -> tuple[Tensor | None, ...]:
        x, t, y, gate_k, gate_v = ctx.saved_tensors
        dx, dt, dy, dgate_k, dgate_v = (None if a is None else torch.empty_like(a) for a in ctx.saved_tensors)
        call = _Pass(x, t, gate_k, gate_v, x.shape[2], *ctx.how)
        moments = {"s": ds.to(moving(y.dtype, y.device.type)).contiguous(), "z": dz.contiguous(), "u": du.contiguous()}
        call(pull, y, **moments, dx=dx, dt=dt, dfirst=dgate_k, dsecond=dgate_v)
        call(spread, y, **moments, o=dy, c=None)
        return dx, dt, dy, dgate_k, dgate_v, None, None


class _Read(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: FunctionCtx, x: Tensor, t: Tensor | None, s: Tensor, z: Tensor, u: Tensor, feature: str, tiny: float,
        readout: str, eps: float, dtype: torch.dtype,
    ) -> Tensor:  # fmt: skip
        o = torch.empty((*x.shape[:3], u.shape[2]), dtype=dtype, device=x.device)
        c = torch.empty(x.shape[:3], dtype=z.dtype, device=x.device)
        moments = s.to(moving(dtype, x.device.type)).contiguous(), z.contiguous(), u.contiguous()
        ctx.how = s.shape[1], feature, tiny, readout, eps
        _Pass(x, t, None, None, *ctx.how)(spread, o, **dict(zip("szu", moments)), o=o, c=c)
        ctx.save_for_backward(x, t, c, *moments)
        return o

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, do: Tensor) -> tuple[Tensor | None, ...]:
        x, t, c, *moments = ctx.saved_tensors
        do = do.contiguous()
        dx, dt, dc = (None if a is None else torch.empty_like(a) for a in (x, t, c))
        call = _Pass(x, t, c, dc, *ctx.how)
        call(pull, do, **dict(zip("szu", moments)), dx=dx, dt=dt, dfirst=None, dsecond=dc)
        return dx, dt, *call.sums(do), None, None, None, None, None


def gathered(
    k: Tensor, v: Tensor, *, turned: Tensor | None = None, gate_k: Tensor | None = None, gate_v: Tensor | None = None,
    feature: str = "none", tiny: float = 0.0,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """S, z and u, each of as many heads as it takes for k, v and what comes with them to have whole shares in one."""
    given = [k, turned, v, gate_k, gate_v]
    heads = math.lcm(*(x.shape[2] for x in given if x is not None))
    return _Gather.apply(*(None if x is None else _heads(x, heads).contiguous() for x in given), feature, tiny)


def read_out(
    q: Tensor, moments: tuple[Tensor, Tensor, Tensor], *, readout: str, heads: int, dtype: torch.dtype,
    turned: Tensor | None = None, feature: str = "none", tiny: float = 0.0, eps: float = 0.0,
) -> Tensor:  # fmt: skip
    """(B,Q,heads,V) in `dtype`."""
    q, turned = (None if x is None else _heads(x, heads).contiguous() for x in (q, turned))
    return _Read.apply(q, turned, *moments, feature, tiny, readout, eps, dtype)


def _heads(x: Tensor, heads: int) -> Tensor:
    return x if x.shape[2] == heads else x.repeat_interleave(heads // x.shape[2], 2)


def _most(*tensors: Tensor) -> int:
    return max(x.shape[2] for x in tensors)


def _kept(x: Tensor, like: Tensor) -> Tensor:
    """Features as they wait for the kernels: cubes and means are more than float16 holds."""
    return x.to(torch.bfloat16 if like.dtype == torch.bfloat16 else wide(like.dtype))


def inline(q: Tensor, k: Tensor, v: Tensor, *, causal: bool, scale: float, state: State | None, block: int) -> Result:
    """Around the mean value, the mass cancels: o = u/n + (scale/n) q (S - z u^T / n)."""
    s, z, u = gathered(k, v)
    u = u / k.shape[1]
    s = scale / k.shape[1] * (s - z[..., :, None] * u[..., None, :])
    return read_out(q, (s, z, u), readout="shifted", heads=_most(q, k, v), dtype=q.dtype), None


def mala(
    q: Tensor, k: Tensor, v: Tensor, *, causal: bool, scale: float, state: State | None, eps: float, block: int,
    angles_q: Tensor | None = None, angles_k: Tensor | None = None,
) -> Result:  # fmt: skip
    n, (tq, tk) = k.shape[1], _turned(q, k, angles_q, angles_k)
    s, z, u = gathered(k, v, turned=tk, feature="elu1")
    moments = scale / n * s, scale / n * z, u / n
    how = {"turned": tq, "feature": "elu1", "readout": "mala", "eps": eps}
    return read_out(q, moments, heads=_most(q, k, v), dtype=q.dtype, **how), None


def rala(
    q: Tensor, k: Tensor, v: Tensor, *, causal: bool, scale: float, state: State | None, eps: float,
    angles_q: Tensor | None = None, angles_k: Tensor | None = None,
) -> Result:  # fmt: skip
    """What the queries want on average is a gate of the keys, one for each head of the queries."""
    heads, n = _most(q, k, v), k.shape[1]
    wanted = _heads(core.elu1(q.to(wide(q.dtype))).mean(1, keepdim=True), heads)[:, 0]
    keys = core.elu1(k.to(wide(k.dtype)))
    logits = torch.einsum("bhgd,bkhd->bkhg", wanted.unflatten(1, (k.shape[2], -1)), keys).flatten(2)
    tq, tk = _turned(q, k, angles_q, angles_k)
    s, z, u = gathered(k, v, turned=tk, gate_k=(scale * logits).softmax(1), feature="elu1")
    how = {"turned": tq, "feature": "elu1", "readout": "quotient", "eps": eps}
    return read_out(q, (s, z, u / n), heads=heads, dtype=q.dtype, **how), None


def nalaformer(
    q: Tensor, k: Tensor, v: Tensor, *, causal: bool, scale: float, state: State | None, eps: float, block: int,
    angles_q: Tensor | None = None, angles_k: Tensor | None = None,
) -> Result:  # fmt: skip
    """The features, twice as wide and with a power that needs the norm, come from PyTorch."""
    heads, n, turned = _most(q, k, v), k.shape[1], [None, None]
    features = [nala.feature_q(q.to(wide(q.dtype)), eps), nala.signed(k.to(wide(k.dtype)) ** 3)]
    if angles_q is not None and angles_k is not None:
        turned = [_kept(_rotate(f, torch.cat([a] * 2, -1)), q) for f, a in zip(features, (angles_q, angles_k))]
    fq, fk = (_kept(f, q) for f in features)
    s, z, u = gathered(fk, v, turned=turned[1])
    how = {"turned": turned[0], "readout": "quotient", "eps": eps}
    return read_out(fq, (s / n, z / n, u / n), heads=heads, dtype=q.dtype, **how), None


def l2vit(
    q: Tensor, k: Tensor, v: Tensor, *, causal: bool, scale: float, state: State | None, temperature: Tensor | None,
    least: float, block: int,
) -> Result:  # fmt: skip
    s, z, u = gathered(k, v, feature="relu")
    if temperature is not None:
        s, z, u = (x.repeat_interleave(len(temperature) // x.shape[1], 1) for x in (s, z, u))
        s = s * temperature.to(s.dtype)[:, None, None]
    else:
        s = s * scale
    how = {"feature": "relu", "readout": "clamped", "eps": least}
    return read_out(q, (s, z, u), heads=_most(q, k, v), dtype=q.dtype, **how), None


def linfusion(
    q: Tensor, k: Tensor, v: Tensor, *, causal: bool, scale: float, state: State | None, eps: float
) -> Result:
    n, (s, z, u) = k.shape[1], gathered(k, v, feature="elu1")
    how = {"feature": "elu1", "readout": "quotient", "eps": eps}
    return read_out(q, (s / n, z / n, u / n), heads=_most(q, k, v), dtype=q.dtype, **how), None


def lina(
    q: Tensor, k: Tensor, v: Tensor, *, causal: bool, scale: float, state: State | None, eps: float, tiny: float,
    gate_k: Tensor | None = None, gate_v: Tensor | None = None,
) -> Result:  # fmt: skip
    n, how = k.shape[1], {"feature": "relu", "tiny": tiny}
    s, z, u = gathered(k, v, gate_k=gate_k, gate_v=gate_v, **how)
    moments = s / n, z / n, u / n
    return read_out(q, moments, readout="quotient", heads=_most(q, k, v), dtype=q.dtype, eps=eps, **how), None


def _turned(
    q: Tensor, k: Tensor, angles_q: Tensor | None, angles_k: Tensor | None
) -> tuple[Tensor, Tensor] | tuple[None, None]:
    """elu + 1, rotated."""
    if angles_q is None or angles_k is None:
        return None, None
    tq, tk = (_kept(_rotate(core.elu1(x.to(wide(x.dtype))), a), x) for x, a in ((q, angles_q), (k, angles_k)))
    return tq, tk


def _rotate(x: Tensor, angles: Tensor) -> Tensor:
    heads = math.lcm(x.shape[2], angles.shape[2])
    return core.rotate(_heads(x, heads), _heads(angles, heads))
