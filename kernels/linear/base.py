"""The gated delta recurrence, which most causal linear attention is: one token at a time, or chunks of them.

    S_t = diag(exp g_t) S_{t-1}          decay first
    e_t = v_t, or with beta  beta_t (v_t - k_t S_t)
    S_t = S_t + k_t^T e_t;  o_t = scale q_t S_t

g: log decays, None, (B,T,H) or (B,T,H,K); -inf forgets everything. beta: None (additive) or (B,T,H) (delta rule).

Shapes: B batch, H heads, T tokens, N chunks, C tokens of a chunk, K width of keys, V width of values.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import pad

from gnomon.kernels.checks import check_qkv, refuse
from gnomon.kernels.mask import Bound
from gnomon.kernels.op import Cost, Impl, Result, Shape, State, interpreter_refuses, triton

CHUNK = 64
FINE = 16
"""With vector decays: each doubling of the chunk is one more product of its tokens."""


def recurrent(
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
    block: int = CHUNK,
) -> Result:
    """Token by token: what decoding does."""
    s, dtype = state["s"], q.dtype
    q, k, v, g, beta = (None if x is None else x.to(s.dtype) for x in (q, k, v, g, beta))
    if normalize:
        q, k = unit(q), unit(k)
    decays = [None] * q.shape[1] if g is None else _per_channel(g.exp())[..., None].unbind(1)
    strengths = [None] * q.shape[1] if beta is None else beta[..., None].unbind(1)
    outputs = []
    for query, key, value, decay, strength in zip(q.unbind(1), k.unbind(1), v.unbind(1), decays, strengths):
        if decay is not None:
            s = decay * s
        if strength is not None:
            value = strength * (value - (key[..., None, :] @ s)[..., 0, :])
        s = s + key[..., :, None] * value[..., None, :]
        outputs.append((query[..., None, :] @ s)[..., 0, :])
    return (torch.stack(outputs, 1) * scale).to(dtype), {"s": s}


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
    block: int = CHUNK,
) -> Result:
    """Products inside of all chunks at once; only the states walk from chunk to chunk.

    The delta rule is solved for a whole chunk (the WY form): (I + A) e = beta (v - k S), A the strictly lower products
    of the keys. block: tokens of a chunk, rounded up to a power of two.
    """
    s, dtype, length = state["s"], q.dtype, q.shape[1]
    size = 1 << (max(1, min(block, length)) - 1).bit_length()
    q, k, v, g, beta = (None if x is None else _cut(x.to(s.dtype), size) for x in (q, k, v, g, beta))
    if normalize:
        q, k = unit(q), unit(k)
    q = q * scale
    from_start, seen, to_end, carries, erase = q, k, k, [None] * q.shape[2], [None] * q.shape[2]
    if g is not None:
        # a literal -inf would be 0 * inf in the products that sum the gates; the lowest number forgets as well
        g = g.clamp_min(torch.finfo(g.dtype).min)
        ones = torch.ones(size, size, dtype=g.dtype, device=g.device)
        since_start = (ones.tril() @ g).exp()
        from_start, seen, to_end = q * since_start, k * since_start, k * (ones.triu(1) @ g).exp()
        carries = g.sum(-2).exp()[..., None].unbind(2)
    if beta is None:
        inside = decayed(q, k, g)
    else:
        inside, among_keys = decayed(torch.stack([q, beta * k]), k, g)
        goal = torch.cat([beta * v, beta * seen], -1)
        solved = torch.linalg.solve_triangular(among_keys, goal, upper=False, unitriangular=True)
        v, erase = solved.split([v.shape[-1], k.shape[-1]], -1)
        erase = erase.unbind(2)
    before, written = [], []
    for key, value, gone, carry in zip(to_end.unbind(2), v.unbind(2), erase, carries):
        before.append(s)
        written.append(value if gone is None else value - gone @ s)
        s = (s if carry is None else carry * s) + key.mT @ written[-1]
    o = from_start @ torch.stack(before, 2) + inside @ torch.stack(written, 2)
    return o.flatten(2, 3).transpose(1, 2)[:, :length].to(dtype), {"s": s}


def decayed(rows: Tensor, k: Tensor, g: Tensor | None) -> Tensor:
    """(...,C,C): rows_i . exp(g_{j+1} + ... + g_i) k_j where j <= i, else 0. g finite, (...,C,1) or (...,C,K).

    Sums of log decays are only ever made of the terms that they need, never as differences of longer ones: no decay is
    too strong, and no exponent is positive. For vectors, a pair meets in the smallest block of 2, 4, 8, ... tokens that
    holds both: j decays up to its middle, i from the middle on.
    """
    if g is None:
        return (rows @ k.mT).tril()
    if g.shape[-1] == 1:
        return (rows @ k.mT) * _spans(g[..., 0]).exp()
    o = (rows * k).sum(-1)[..., None, None]
    while (size := o.shape[-1]) < k.shape[-2]:
        (_, late), (early, _) = _halves(rows, size), _halves(k, size)
        before, after = _halves(g, size)
        until = pad(before[..., 1:, :].flip(-2).cumsum(-2).flip(-2), (0, 0, 0, 1))
        across = (late * after.cumsum(-2).exp()) @ (early * until.exp()).mT
        first, second = o.unflatten(-3, (-1, 2)).unbind(-3)
        o = torch.cat([torch.cat([first, torch.zeros_like(first)], -1), torch.cat([across, second], -1)], -2)
    return o[..., 0, :, :]


def unit(x: Tensor) -> Tensor:
    """Of length one, except close to zero."""
    return x * (x.square().sum(-1, keepdim=True) + 1e-6).rsqrt()


def normalized(
    core: Callable[..., Result], q: Tensor, k: Tensor, v: Tensor, *, state: State | None, block: int = CHUNK
) -> Result:
    """sum_j (q_i k_j) v_j / sum_j (q_i k_j) for features q and k; the sum of the weights travels as one more value."""
    values = with_one(v.to(q.dtype))
    if state is None:
        sums = torch.einsum("bqhf,bhfv->bqhv", q, torch.einsum("bkhf,bkhv->bhfv", k, values))
    else:
        sums, state = core(q, k, values, causal=True, scale=1.0, state=state, block=block)
    return divided(sums).to(v.dtype), state


def with_one(v: Tensor) -> Tensor:
    return pad(v, (0, 1), value=1.0)


def divided(sums: Tensor) -> Tensor:
    return sums[..., :-1] / sums[..., -1:]


def two_softmaxes(y: Tensor, joint: bool) -> Tensor:
    """Hedgehog's features: softmax(y) and softmax(-y), side by side; joint: one softmax over (2y, -2y)."""
    y = y.to(torch.promote_types(y.dtype, torch.float32))
    both = torch.cat([2 * y, -2 * y], -1).softmax(-1) if joint else torch.cat([y.softmax(-1), (-y).softmax(-1)], -1)
    # no product of features underflows to a sum of zero
    return both.clamp_min(1e-12)


def start(shape: Shape) -> State:
    return {"s": shape.zeros(shape.batch, shape.heads, shape.width, shape.value_width)}


def many_tokens(shape: Shape, mask: Bound) -> str | None:
    return None if shape.queries == 1 else "token by token is for decoding"


def twin_refuses(shape: Shape, mask: Bound) -> str | None:
    if not shape.causal:
        return "the kernels are causal"
    if shape.width > 256:
        return f"the recurrence has keys {shape.width} wide, the kernels take 256"
    return interpreter_refuses(shape, mask)


TWIN = triton("linear.core:chunk", refuses=twin_refuses, packed=True)


def impls(
    around: Callable[[Callable[..., Result]], Callable[..., Result]],
    *,
    inside: Callable[[Shape], Shape] | None = None,
    packed: bool = True,
) -> dict[str, Impl]:
    """For a method that does something around the core: it is given one and returns a whole implementation.

    inside  the shape that the core sees, where it is another one
    packed  what is done around the core knows no other token; else it gets one sequence at a time
    """

    def call(*tensors: Tensor, cu_seqlens: Tensor | None = None, **named: object) -> Result:
        return around(partial(TWIN.call, cu_seqlens=cu_seqlens))(*tensors, **named)

    def reason(shape: Shape, mask: Bound) -> str | None:
        return TWIN.refuses(shape if inside is None else inside(shape), mask)

    return {
        "recurrent": Impl(around(recurrent), declines=many_tokens),
        "chunk": Impl(around(chunk)),
        "triton": replace(TWIN, call=call, refuses=reason, packed=packed),
    }


IMPLS = {"recurrent": Impl(recurrent, declines=many_tokens), "chunk": Impl(chunk), "triton": TWIN}
AUTO = ("triton", "recurrent", "chunk")


def check_gates(
    op: str, k: Tensor, *, g: Tensor | None = None, vector: bool = False, beta: Tensor | None = None
) -> None:
    """The companions are per head (g and beta), or per head and channel (g, if `vector`)."""
    for name, x, channels in (("g", g, vector), ("beta", beta, False)):
        if x is None:
            continue
        if x.ndim != 3 + channels or (channels and x.shape[3] != k.shape[-1]):
            wanted = f"(batch, tokens, heads{f', {k.shape[-1]}' if channels else ''})"
            raise refuse(op, f"{name} has shape {tuple(x.shape)}", f"give {wanted}")
        if not x.dtype.is_floating_point:
            raise refuse(op, f"{name} is {x.dtype}", "give a floating point tensor")


def check_per_head(op: str, name: str, x: Tensor, q: Tensor, k: Tensor, v: Tensor, *, channels: bool = False) -> None:
    """A parameter of (H,), or of (H,D) if `channels`; H is the largest count of heads."""
    check_qkv(op, q, k, v)
    wanted = (max(t.shape[2] for t in (q, k, v)), *q.shape[3:][: int(channels)])
    if tuple(x.shape) != wanted:
        raise refuse(op, f"{name} has shape {tuple(x.shape)}", f"give {wanted}")


def cost(*, gates: str = "none", delta: bool = False) -> Callable[[Shape], Cost]:
    """Of the chunked form; gates: none, scalar or vector."""

    def count(shape: Shape) -> Cost:
        rows, width, out = shape.batch * shape.heads * shape.queries, shape.width, shape.value_width
        # the state is read and written once; half of the products in a chunk are used
        near = min(CHUNK, shape.queries)
        operations = 4 * width * out + near * (width + out)
        if delta:
            operations += 2 * width * out + near * (2 * width + out)
        exponentials = {"none": 0, "scalar": 2 + near, "vector": width * (2 + math.log2(FINE))}[gates]
        companions = {"none": 0, "scalar": 1, "vector": width}[gates] + delta
        size = torch.finfo(shape.dtype).bits // 8
        return Cost(rows * operations, rows * (size * 2 * (width + out) + 4 * companions), rows * exponentials)

    return count


def _cut(x: Tensor, size: int) -> Tensor:
    """(B,T,H,...) to (B,H,N,C,...), filled up with zeros: tokens that neither write nor decay. A scalar is 1 wide."""
    x = _per_channel(x).transpose(1, 2)
    return pad(x, (0, 0, 0, -x.shape[2] % size)).unflatten(2, (-1, size))


def _per_channel(x: Tensor) -> Tensor:
    return x if x.ndim == 4 else x[..., None]


def _spans(g: Tensor) -> Tensor:
    """(...,C) to (...,C,C): g_{j+1} + ... + g_i, and -inf where j > i."""
    size = g.shape[-1]
    future = torch.ones(size, size, dtype=torch.bool, device=g.device).triu(1)
    return g[..., None].expand(*g.shape, size).tril(-1).cumsum(-2).masked_fill(future, -torch.inf)


def _halves(x: Tensor, size: int) -> tuple[Tensor, ...]:
    """(...,C,K) to the first and the second halves (...,C/2s,s,K) of its blocks of 2 s tokens."""
    return x.unflatten(-2, (-1, 2, size)).unbind(-3)
