"""Sequences of different lengths in one tensor: packed end to end with cu_seqlens, or in rows with padding.

Padding is turned into packing, and packing, for code that knows one sequence at a time, into a loop. So an operator
needs neither: it is written for (B,T,H,D), and `op.py` brings it the sequences.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gnomon.kernels.mask import Bound
from gnomon.kernels.masks.keeping import once


@dataclass(frozen=True)
class Runs:
    """Where the sequences of a segmented mask are. `index` picks the real tokens out of the flattened rows.

    q_index, k_index  (n,) long, or None when nothing is padded and there is one row
    cu_q, cu_k        (N+1,) int64
    """

    q_index: Tensor | None
    k_index: Tensor | None
    cu_q: Tensor
    cu_k: Tensor

    def pack(self, x: Tensor, *, side: str) -> Tensor:
        """(B,T,...) to (1,n,...)."""
        index = self.q_index if side == "q" else self.k_index
        return x if index is None else x.flatten(0, 1)[index][None]

    def unpack(self, x: Tensor, rows: int, length: int) -> Tensor:
        """The outputs back where the queries were; zeros at padding."""
        if self.q_index is None:
            return x
        return x.new_zeros(rows * length, *x.shape[2:]).index_copy(0, self.q_index, x[0]).unflatten(0, (rows, length))


def from_cu_seqlens(cu_q: Tensor, cu_k: Tensor) -> Runs:
    return Runs(None, None, cu_q.long(), cu_k.long())


def from_segments(bound: Bound, rows: int) -> Runs:
    """The runs of equal segment numbers, row by row; kept with the mask.

    Queries and keys must hold the same segments in the same order.
    """
    return once(bound.cache, ("runs", rows), lambda: _from_segments(bound, rows))


def _from_segments(bound: Bound, rows: int) -> Runs:
    q_index, q_name, q_size = _runs(bound.q["segment"], rows)
    k_index, k_name, k_size = (q_index, q_name, q_size) if bound.k is bound.q else _runs(bound.k["segment"], rows)
    if not torch.equal(q_name, k_name):
        raise ValueError(
            f"mask: the queries hold {len(q_name)} sequences and the keys {len(k_name)}, or others; "
            "give both the same segments in one order"
        )
    return Runs(q_index, k_index, _ends(q_size), _ends(k_size))


def queries_last(bound: Bound, runs: Runs | None, rows: int) -> bool:
    """Whether the queries stand at the positions of the last keys of their sequences."""
    if bound.q is bound.k:
        return True
    p_q, p_k = bound.q["p"], bound.k["p"]
    if runs is None:
        return p_q.shape[1] <= p_k.shape[1] and bool((p_q == p_k[:, -p_q.shape[1] :]).all())
    size = runs.cu_q.diff()
    if bool((size > runs.cu_k.diff()).any()):
        return False
    p_q, p_k = runs.pack(p_q.expand(rows, -1), side="q")[0], runs.pack(p_k.expand(rows, -1), side="k")[0]
    behind = (runs.cu_k - runs.cu_q)[1:].repeat_interleave(size)
    return torch.equal(p_q, p_k[torch.arange(len(p_q), device=p_q.device) + behind])


def _runs(segment: Tensor, rows: int) -> tuple[Tensor, Tensor, Tensor]:
    """Places of the real tokens, and (row, segment) and size of each run."""
    whole = segment.expand(rows, -1)
    row = torch.arange(rows, device=segment.device)[:, None].expand_as(whole)
    place = (whole >= 0).flatten().nonzero()[:, 0]
    row, whole = row.flatten()[place], whole.flatten()[place]
    # one number for both, which is much faster to sort
    span = int(whole.max()) + 1 if len(whole) else 1
    name, size = (row * span + whole).unique_consecutive(return_counts=True)
    if len(name) != len(name.unique()):
        raise ValueError("mask: a segment is interrupted by another one; keep the tokens of each sequence together")
    return place, torch.stack([name // span, name % span], 1), size


def _ends(size: Tensor) -> Tensor:
    return torch.nn.functional.pad(size.cumsum(0), (1, 0))
