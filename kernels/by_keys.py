"""Attention block after block of keys, each for the queries that chose it: nothing but the chosen pairs is computed.

For choices that neighbours among the queries do not share, on a CPU. With an online softmax, and backward by hand from
its logarithms: recorded, the steps would keep all chosen pairs.

Shapes: N queries of h rows each that choose together, K keys of one head.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable


def attend_by_keys(
    q: Tensor, k: Tensor, v: Tensor, chosen: Tensor, *, block: int, scale: float, past: int | None = None
) -> Tensor:
    """q (N,h,D), k (K,D), v (K,V), chosen (N,blocks of K) bool, in each row one block or more -> (N,h,V).

    past  causal: keys before the first query. Each query sees a key in all of its blocks, and of these one of its own
    """
    # transposed: the queries of the first block, of the second, ...
    blocks, rows = chosen.T.nonzero().T
    counts = blocks.bincount(minlength=chosen.shape[1]).tolist()
    return _Attend.apply(q, k, v, _Choice(rows.int(), counts, block, past), scale)


@dataclass(frozen=True)
class _Choice:
    """The queries of each block of keys, ascending, one block after the other."""

    rows: Tensor
    counts: list[int]
    block: int
    past: int | None

    def __iter__(self) -> Iterator[tuple[slice, Tensor]]:
        """The keys of each block that was chosen, and the queries that did."""
        for number, rows in enumerate(self.rows.split(self.counts)):
            if len(rows):
                yield slice(number * self.block, (number + 1) * self.block), rows.long()

    def scores(self, q: Tensor, k: Tensor, keys: slice, rows: Tensor) -> Tensor:
        """(n h,block) of queries (n h,D) with the keys of one block."""
        scores = q @ k[keys].T
        if self.past is not None:
            # ascending: the queries inside the block are the first
            place = torch.arange(keys.start, keys.start + scores.shape[1])
            late = place > self.past + rows[: self.block, None]
            scores.unflatten(0, (len(rows), -1))[: self.block].masked_fill_(late[:, None], -torch.inf)
        return scores


class _Attend(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, q: Tensor, k: Tensor, v: Tensor, choice: _Choice, scale: float) -> Tensor:
        wide = torch.promote_types(q.dtype, torch.float32)
        scaled, keys, values = q.to(wide) * scale, k.to(wide), v.to(wide)
        top = scaled.new_full(q.shape[:2], -torch.inf)
        below, above = torch.zeros_like(top), top.new_zeros(*q.shape[:2], v.shape[1])
        for here, rows in choice:
            scores = choice.scores(_take(scaled, rows), keys, here, rows)
            before = _take(top, rows)
            now = torch.maximum(before, scores.amax(1))
            weights, shrink = scores.sub_(now[:, None]).exp_(), before.sub_(now).exp_()
            _put(top, rows, now)
            _put(below, rows, _take(below, rows).mul_(shrink).add_(weights.sum(1)))
            _put(above, rows, _take(above, rows).mul_(shrink[:, None]).addmm_(weights, values[here]))
        o = above.div_(below[..., None]).to(q.dtype)
        ctx.save_for_backward(q, k, v, o, top.add_(below.log_()))
        ctx.fixed = choice, scale
        return o

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, do: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, o, logs = ctx.saved_tensors
        choice, scale = ctx.fixed
        scaled, keys, values, do = q.to(logs.dtype) * scale, k.to(logs.dtype), v.to(logs.dtype), do.to(logs.dtype)
        delta = (do * o).sum(-1)
        dq, dk, dv = torch.zeros_like(scaled), torch.zeros_like(keys), torch.zeros_like(values)
        for here, rows in choice:
            mine, theirs = _take(scaled, rows), _take(do, rows)
            weights = choice.scores(mine, keys, here, rows).sub_(_take(logs, rows)[:, None]).exp_()
            dv[here] = weights.T @ theirs
            dscores = (theirs @ values[here].T).sub_(_take(delta, rows)[:, None]).mul_(weights)
            dk[here] = dscores.T @ mine
            _put(dq, rows, _take(dq, rows).addmm_(dscores, keys[here]))
        return (dq * scale).to(q.dtype), dk.to(k.dtype), dv.to(v.dtype), None, None


def _take(x: Tensor, rows: Tensor) -> Tensor:
    return x.index_select(0, rows).flatten(0, 1)


def _put(x: Tensor, rows: Tensor, found: Tensor) -> None:
    # copied, not added: torch adds row by row
    x.index_copy_(0, rows, found.view(len(rows), *x.shape[1:]))
