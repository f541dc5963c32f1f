"""Core M: the sums that linear attention reads, taken in three ways, and what its methods share.

For features q (B,Q,H,F) and k (B,K,H,F) and values v (B,K,H,V), a method reads of the keys j that query i sees

    values_i = sum_j (q_i k_j) v_j  (B,Q,H,V)        mass_i = sum_j q_i k_j  (B,Q,H,1)

and maybe their number n_i and the sum of v_j. `quadratic` takes the first two from the scores themselves (the
specification), `blocks` from the moments of the keys in time linear in the tokens, `recurrent` token by token.
`turned` holds rotated features for the values alone: the mass is that of the plain ones.

A causal call has a state and reads prefixes; a noncausal one has none and reads everything.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from gnomon.kernels.checks import refuse
from gnomon.kernels.example import Example, Sizes
from gnomon.kernels.mask import Bound
from gnomon.kernels.op import Cost, Impl, Result, Shape, State, triton

Turned = tuple[Tensor, Tensor] | None

QUOTIENT = """
S[e,f] = K[e,m] * V[f,m]
Z[e]   = sum(K[e,m])
Y[f,p] = Q[e,p] * S[e,f]
C[p]   = Q[e,p] * Z[e]
O[f,p] = Y[f,p] / C[p]
"""


class Way(Protocol):
    """How the sums are taken: (values, mass, what the state then holds of them)."""

    def __call__(
        self, q: Tensor, k: Tensor, v: Tensor, state: State | None, *, turned: Turned = None, block: int = 64
    ) -> tuple[Tensor, Tensor, State | None]: ...


def quadratic(
    q: Tensor, k: Tensor, v: Tensor, state: State | None, *, turned: Turned = None, block: int = 64
) -> tuple[Tensor, Tensor, State | None]:
    """From the matrix of scores; a causal one drops its upper half and adds what the state remembers."""
    tq, tk = turned or (q, k)
    scores = torch.einsum("bqhf,bkhf->bhqk", q, k)
    turned_scores = scores if turned is None else torch.einsum("bqhf,bkhf->bhqk", tq, tk)
    if state is None:
        return torch.einsum("bhqk,bkhv->bqhv", turned_scores, v), scores.sum(-1).transpose(1, 2)[..., None], None
    values = torch.einsum("bhqk,bkhv->bqhv", turned_scores.tril(), v) + torch.einsum("bqhf,bhfv->bqhv", tq, state["s"])
    mass = scores.tril().sum(-1).transpose(1, 2) + torch.einsum("bqhf,bhf->bqh", q, state["z"])
    after = {"s": state["s"] + torch.einsum("bkhf,bkhv->bhfv", tk, v), "z": state["z"] + k.sum(1)}
    return values, mass[..., None], after


def blocks(
    q: Tensor, k: Tensor, v: Tensor, state: State | None, *, turned: Turned = None, block: int = 64
) -> tuple[Tensor, Tensor, State | None]:
    """Two passes: moments of the keys, then the queries; causal: block after block, quadratic inside each."""
    tq, tk = turned or (q, k)
    if state is None:
        s, z = torch.einsum("bkhf,bkhv->bhfv", tk, v), k.sum(1)
        return torch.einsum("bqhf,bhfv->bqhv", tq, s), torch.einsum("bqhf,bhf->bqh", q, z)[..., None], None
    values, mass = [], []
    # split and not sliced: the gradients of slices are each as long as the whole
    parts = zip(*(x.split(block, 1) for x in (q, k, v, *(turned or ()))))
    for queries, keys, own, *both in parts:
        value, weight, state = quadratic(queries, keys, own, state, turned=tuple(both) or None)
        values.append(value)
        mass.append(weight)
    return torch.cat(values, 1), torch.cat(mass, 1), state


def recurrent(
    q: Tensor, k: Tensor, v: Tensor, state: State | None, *, turned: Turned = None, block: int = 64
) -> tuple[Tensor, Tensor, State | None]:
    """Token by token: what decoding does."""
    assert state is not None, "only_causal has seen to it"
    tq, tk = turned or (q, k)
    s, z, values, mass = state["s"], state["z"], [], []
    for t in range(q.shape[1]):
        s = s + tk[:, t, :, :, None] * v[:, t, :, None, :]
        z = z + k[:, t]
        values.append(torch.einsum("bhf,bhfv->bhv", tq[:, t], s))
        mass.append((q[:, t] * z).sum(-1, keepdim=True))
    return torch.stack(values, 1), torch.stack(mass, 1), {"s": s, "z": z}


def count(k: Tensor, state: State | None) -> tuple[Tensor | int, State]:
    """How many keys each query sees: a number, or (B,T,1,1) along a sequence."""
    if state is None:
        return k.shape[1], {}
    n = state["n"][:, None] + torch.arange(1, k.shape[1] + 1, device=k.device, dtype=k.dtype)
    return n[..., None, None], {"n": n[:, -1]}


def total(v: Tensor, state: State | None) -> tuple[Tensor, State]:
    """The sum of the values each query sees: (B,1,H,V), or (B,T,H,V) along a sequence."""
    if state is None:
        return v.sum(1, keepdim=True), {}
    sums = state["u"][:, None] + v.cumsum(1)
    return sums, {"u": sums[:, -1]}


def join(*parts: State | None) -> State | None:
    """One state of its parts; without a sum of keys there is none."""
    return None if parts[0] is None else {name: x for part in parts if part is not None for name, x in part.items()}


def start(shape: Shape, *, names: str, features: int = 1) -> State:
    """The state before the first token, of the named moments; `features` is F / D."""
    width = shape.width * features
    sizes = {
        "s": (shape.heads, width, shape.value_width),
        "z": (shape.heads, width),
        "u": (shape.heads, shape.value_width),
        "n": (),
    }
    return {name: shape.zeros(shape.batch, *sizes[name]) for name in names.split()}


def only_causal(shape: Shape, mask: Bound) -> str | None:
    return None if shape.causal else "token by token goes with a causal mask"


def twin_refuses(shape: Shape, mask: Bound) -> str | None:
    if shape.causal:
        return "its moments are of all keys, not of prefixes"
    if max(shape.width, shape.value_width) > 128:
        return f"widths {shape.width} and {shape.value_width} are beyond 128"
    return None


def impls(method: Callable[..., Result], *, causal: bool, twin: str | None = None) -> dict[str, Impl]:
    """A method, called with a `Way` first, as its implementations; `twin` is its function in triton_ops, if any."""
    found = {"reference": Impl(partial(method, quadratic)), "chunk": Impl(partial(method, blocks))}
    if causal:
        found["recurrent"] = Impl(partial(method, recurrent), refuses=only_causal)
    if twin is not None:
        found["triton"] = triton(twin, refuses=twin_refuses, grouped=True)
    return found


def cost(shape: Shape, *, features: int = 1, exponentials: int = 0, block: int = 64) -> Cost:
    """Two passes over the tokens; causal: the scores inside a block too. `exponentials`: per channel, for the map."""
    width, pair = shape.width * features, shape.width * features + shape.value_width
    inside = min(block, shape.queries) * pair if shape.causal else 0
    rows = shape.batch * shape.heads * shape.queries
    columns = shape.batch * shape.key_heads * shape.keys
    size = torch.finfo(shape.dtype).bits // 8
    operations = 2 * width * (shape.value_width + 1) * (shape.batch * shape.heads * shape.keys + rows) + inside * rows
    moved = size * (shape.width + shape.value_width) * (rows + columns)
    return Cost(operations, moved, exponentials * shape.width * (rows + columns))


def widen(*tensors: Tensor) -> tuple[Tensor, ...]:
    """In at least float32: the sums grow with the number of tokens."""
    return tuple(x.to(torch.promote_types(x.dtype, torch.float32)) for x in tensors)


def elu1(x: Tensor) -> Tensor:
    """elu(x) + 1: positive, and e^x where x is negative."""
    return torch.nn.functional.elu(x) + 1


def rotate(x: Tensor, angles: Tensor) -> Tensor:
    """Adjacent channels (even, odd) of x (B,T,H,D) turned by angles (B,T,h,D/2)."""
    cos, sin = angles.to(x.dtype).cos(), angles.to(x.dtype).sin()
    even, odd = x[..., 0::2], x[..., 1::2]
    return torch.stack([even * cos - odd * sin, odd * cos + even * sin], -1).flatten(-2)


def grid_angles(grid: Sequence[int], width: int, *, base: float = 10000.0) -> Tensor:
    """(1, h*w, 1, width/2): the row turns the first half of the channels, the column the second."""
    if width % 4:
        raise ValueError(f"grid_angles: width {width} is no multiple of 4; two axes need whole pairs of channels each")
    steps = base ** -torch.linspace(0, 1, width // 4, dtype=torch.float64)
    places = torch.cartesian_prod(*(torch.arange(n, dtype=torch.float64) for n in grid))
    return (places[:, :, None] * steps).flatten(1)[None, :, None].to(torch.get_default_dtype())


def companions(
    op: str, q: Tensor, angles_q: Tensor | None, angles_k: Tensor | None
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Rotation angles as what goes along with the queries and with the keys; 1 row stands for all."""
    if angles_q is None and angles_k is None:
        return {}, {}
    if angles_q is None or angles_k is None:
        raise refuse(op, "angles of the queries or of the keys are missing", "give both or none")
    for name, x in (("angles_q", angles_q), ("angles_k", angles_k)):
        if x.ndim != 4 or 2 * x.shape[3] != q.shape[-1]:
            raise refuse(op, f"{name} has shape {tuple(x.shape)}", f"give (batch, tokens, heads, {q.shape[-1] // 2})")
    every_q, every_k = (x.expand(len(q), -1, -1, -1) if len(x) == 1 else x for x in (angles_q, angles_k))
    return {"angles_q": every_q}, {"angles_k": every_k}


def turn(q: Tensor, k: Tensor, angles_q: Tensor | None, angles_k: Tensor | None) -> Turned:
    return None if angles_q is None or angles_k is None else (rotate(q, angles_q), rotate(k, angles_k))


def turned_example(sizes: Sizes) -> Example:
    """A call with rotation, for the contract."""
    half = sizes.width // 2
    return Example(
        per_query={"angles_q": sizes.randn(sizes.batch, sizes.queries, 1, half)},
        per_key={"angles_k": sizes.randn(sizes.batch, sizes.keys, 1, half)},
    )
