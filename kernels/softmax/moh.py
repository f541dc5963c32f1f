"""MoH: heads as experts: every token weighs its heads, and most of them may be off.

Paper:   MoH: Multi-Head Attention as Mixture-of-Head Attention. arXiv:2410.11842
Rule:    o_ih = w_ih softmax attention_ih;  w from `gate` (top-k of learned logits) or `norm_gate` (top-k of |q_h|)
Where:   any self- or cross-attention; the router of a query decides, keys and values of all heads exist
Differs: a head with weight 0 is off: its query row is not computed by "rows", and its weight gets no gradient
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from gnomon.kernels import attend
from gnomon.kernels.checks import refuse
from gnomon.kernels.example import Example, Sizes
from gnomon.kernels.mask import Bound, Everything, Given, Mask, walk
from gnomon.kernels.masks.tokens import Tokens
from gnomon.kernels.op import Impl, Op, Result, Shape, State, repeat
from gnomon.kernels.softmax.base import over_attention, remember
from gnomon.kernels.typed import typed


@typed
def moh(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    weights: Tensor,
    mask: Mask = None,
    scale: float | None = None,
    state: State | None = None,
    cu_seqlens: Tensor | tuple[Tensor, Tensor] | None = None,
    impl: str = "auto",
) -> Result:
    """q (B,Q,H,D), k (B,K,Hk,D), v (B,K,Hk,V), weights (B,Q,H) -> o (B,Q,H,V) and the keys and values so far."""
    if weights.ndim != 3:
        raise refuse("moh", f"weights have shape {tuple(weights.shape)}", "give (batch, queries, heads)")
    k, v, state = remember("moh", k, v, state, cu_seqlens)
    per_query = {"weights": weights}
    return OP.run(impl, q, k, v, mask=mask, scale=scale, cu_seqlens=cu_seqlens, per_query=per_query)[0], state


def gate(
    routed: Tensor, *, active: int, shared: Tensor | None = None, balance: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Logits of routed heads (B,T,E), of shared heads (B,T,S), of the two kinds (B,T,2) -> weights (B,T,S+E) and the
    loss that keeps the load even."""
    experts = routed.shape[-1]
    if not 1 <= active <= experts:
        raise refuse("moh", f"{active} active heads of {experts} routed ones", f"give 1 to {experts}")
    chances = routed.softmax(-1)
    chosen = torch.zeros_like(chances).scatter(-1, chances.topk(active, -1).indices, 1.0)
    kept = chances * chosen
    weights = active * kept / kept.sum(-1, keepdim=True).clamp(min=torch.finfo(kept.dtype).eps)
    share = None if shared is None else shared.softmax(-1) * shared.shape[-1]
    if balance is not None:
        between = 2 * balance.softmax(-1)
        weights = weights * between[..., 1:]
        share = None if share is None else share * between[..., :1]
    tokens = tuple(range(routed.ndim - 1))
    loss = (chances.mean(tokens) * chosen.mean(tokens)).mean() * experts**2
    return weights if share is None else torch.cat([share, weights], -1), loss


def norm_gate(q: Tensor, *, shared: int, active: int) -> Tensor:
    """q (B,T,H,D) -> weights (B,T,H) of 0 and 1: the first `shared` heads, and of the rest those with the longest q."""
    if not 1 <= active <= q.shape[2] - shared:
        raise refuse("moh", f"{active} active heads of {q.shape[2] - shared} routed ones", "give fewer, or share fewer")
    longest = q[:, :, shared:].norm(dim=-1).topk(active, -1).indices + shared
    weights = torch.zeros(q.shape[:3], dtype=q.dtype, device=q.device)
    weights[..., :shared] = 1
    return weights.scatter(-1, longest, 1.0)


def weigh(
    attention: Callable[..., Result], q: Tensor, k: Tensor, v: Tensor, *, mask: Bound, scale: float,
    state: State | None = None, weights: Tensor,
) -> Result:  # fmt: skip
    """All heads, then their weights."""
    o, _ = attention(q, k, v, mask=mask, scale=scale)
    return o * repeat(_of_active(weights), o.shape[2])[..., None].to(o.dtype), None


def rows(
    q: Tensor, k: Tensor, v: Tensor, *, mask: Bound, scale: float, state: State | None = None, weights: Tensor
) -> Result:
    """Head after head, only the query rows that are on."""
    outputs = []
    for head in range(q.shape[2]):
        here, on = slice(head, head + 1), weights[:, :, head] != 0
        keys, values = k[:, :, here], v[:, :, here]
        if bool(on.all()):
            outputs.append(attend.sdpa(q[:, :, here], keys, values, mask=mask, scale=scale)[0])
            continue
        # stable: rows stay in order, and so blocks of them still see only some blocks of keys
        order = on.int().argsort(dim=1, descending=True, stable=True)
        place = order[:, : max(int(on.sum(1).max()), 1)]
        tokens = Tokens({name: x.expand(len(q), -1).gather(1, place) for name, x in mask.q.fields.items()})
        attention = attend.sdpa if _everything(mask) else attend.chunk
        index = place[..., None, None]
        found = q[:, :, here].gather(1, index.expand(-1, -1, -1, q.shape[3]))
        o, _ = attention(found, keys, values, mask=Bound(mask.expr, tokens, mask.k), scale=scale)
        empty = o.new_zeros(q.shape[0], q.shape[1], 1, v.shape[3])
        outputs.append(empty.scatter(1, index.expand_as(o), o))
    o = torch.cat(outputs, 2)
    return o * _of_active(weights)[..., None].to(o.dtype), None


def rows_refuses(shape: Shape, mask: Bound) -> str | None:
    if mask.rule.per_head or any(isinstance(part, Given) for part in walk(mask.rule)):
        return "the mask differs by head, or is a tensor"
    return None


def rows_declines(shape: Shape, mask: Bound) -> str | None:
    return None if _everything(mask) else "gathered rows need the mask as a tensor"


def _everything(mask: Bound) -> bool:
    return not mask.segmented and isinstance(mask.expr, Everything)


def _of_active(weights: Tensor) -> Tensor:
    return torch.where(weights != 0, weights, torch.zeros_like(weights))


def example(sizes: Sizes) -> Example:
    weights = sizes.rand(sizes.batch, sizes.queries, sizes.heads)
    return Example(per_query={"weights": weights * (sizes.rand(*weights.shape) < 0.6)})


OP = Op(
    name="moh",
    impls={**over_attention(weigh), "rows": Impl(rows, rows_refuses, packed=True, declines=rows_declines)},
    auto=("rows", *attend.AUTO),
    patterns=frozenset({"NS", "CS", "NC", "CC"}),
    masks=True,
    cache=True,
    cost=attend.cost,
    cascade=attend.CASCADE,
    example=example,
)
