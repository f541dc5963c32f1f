"""Lightning: linear attention whose memory fades at a fixed rate per head (TransNormerLLM).

Paper:   Various Lengths, Constant Speed: Efficient Language Modeling with Lightning Attention. arXiv:2405.17381
Rule:    o_t = scale sum_{j<=t} exp(-s_h (t - j)) (q_t k_j) v_j, with s_h >= 0 of one of three schedules, never trained
Where:   causal self-attention; activation of q and k, gate and SRMSNorm are the layer's
Differs: scale is 1 when left out, as in the paper, and not D ** -0.5; without decay it is `plain`, also noncausal
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

import gnomon.kernels.linear.base as base
from gnomon.kernels.analysis.recurrences import recurrence
from gnomon.kernels.example import Example, Sizes
from gnomon.kernels.mask import Mask
from gnomon.kernels.op import Impl, Op, Result, State
from gnomon.kernels.typed import typed


@typed
def lightning(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    decay: Tensor,
    mask: Mask = None,
    scale: float | None = 1.0,
    state: State | None = None,
    cu_seqlens: Tensor | None = None,
    impl: str = "auto",
    block: int = base.CHUNK,
) -> Result:
    """q (B,T,H,D), k (B,T,Hk,D), v (B,T,Hv,V), decay (H,) s -> o (B,T,H,V) and the state {"s": (B,H,D,V)}."""
    base.check_per_head("lightning", "decay", decay, q, k, v)
    options = {"decay": decay, "block": block}
    return OP.run(impl, q, k, v, mask=mask, scale=scale, state=state, cu_seqlens=cu_seqlens, options=options)


def slopes(schedule: str, *, heads: int, layer: int, layers: int) -> Tensor:
    """The rates s (H,) of a layer: three schedules go by one name, and a checkpoint knows only its own.

    paper    8 h/H (1 - l/L): head 0 does not fade
    alibi    the slopes of ALiBi, times 1 - l/(L-1) + 1e-5: the authors' kernel repository
    minimax  2 ** (-8 (h+1)/H) for any H, times 1 - l/(L-1+1e-5) + 1e-5: MiniMax models
    """
    if not 0 <= layer < layers:
        raise ValueError(f"lightning: layer {layer} of {layers} layers; count them from 0")
    h = torch.arange(heads, dtype=torch.float64)
    if schedule == "paper":
        return 8 * h / heads * (1 - layer / layers)
    if schedule == "alibi":
        return _alibi(heads) * (1 - layer / max(layers - 1, 1) + 1e-5)
    if schedule == "minimax":
        return 2 ** (-8 * (h + 1) / heads) * (1 - layer / (layers - 1 + 1e-5) + 1e-5)
    raise ValueError(f"lightning: schedule {schedule!r} does not exist; use paper, alibi or minimax")


def _alibi(heads: int) -> Tensor:
    """Geometric for powers of two; else those of the power below, and every second one of the power above."""
    below = 2 ** int(math.log2(heads))
    exact = 2 ** (-8 * torch.arange(1, below + 1, dtype=torch.float64) / below)
    return exact if below == heads else torch.cat([exact, _alibi(2 * below)[::2][: heads - below]])


def quadratic(
    q: Tensor, k: Tensor, v: Tensor, *, causal: bool, scale: float, state: State, decay: Tensor, block: int
) -> Result:
    """The specification: the matrix of products times that of the weights."""
    s, dtype, length = state["s"], q.dtype, q.shape[1]
    q, k, v, decay = q.to(s.dtype) * scale, k.to(s.dtype), v.to(s.dtype), decay.to(s.dtype)
    place = torch.arange(length, device=q.device)
    weights = torch.exp(-decay[:, None, None] * (place[:, None] - place).clamp_min(0)).tril()
    o = torch.einsum("bqhd,bkhd,hqk,bkhv->bqhv", q, k, weights, v)
    o = o + torch.einsum("bqhd,qh,bhdv->bqhv", q, torch.exp(-decay * (place[:, None] + 1)), s)
    written = torch.einsum("bkhd,kh,bkhv->bhdv", k, torch.exp(-decay * (length - 1 - place[:, None])), v)
    return o.to(dtype), {"s": torch.exp(-decay * length)[:, None, None] * s + written}


def with_decay(core: Callable[..., Result]) -> Callable[..., Result]:
    def call(
        q: Tensor, k: Tensor, v: Tensor, *, causal: bool, scale: float, state: State, decay: Tensor, block: int
    ) -> Result:
        g = -decay.expand(1, q.shape[1], -1)
        return core(q, k, v, causal=causal, scale=scale, state=state, g=g, block=block)

    return call


def example(sizes: Sizes) -> Example:
    return Example(parameters={"decay": sizes.rand(sizes.heads)}, options={"block": 4})


def strong(sizes: Sizes) -> Example:
    """One head that keeps everything, and one that keeps nothing."""
    rates = torch.linspace(0, 400, sizes.heads, dtype=sizes.dtype)
    return Example(parameters={"decay": rates}, options={"scale": None})


OP = Op(
    name="lightning",
    impls={"reference": Impl(quadratic), **base.impls(with_decay)},
    auto=base.AUTO,
    patterns=frozenset({"CS"}),
    state=base.start,
    handmade=frozenset({"triton"}),
    cost=base.cost(gates="scalar"),
    # G is minus the decay, for all tokens
    cascade=recurrence(gates="scalar"),
    example=example,
    variants={"strong": strong},
)
