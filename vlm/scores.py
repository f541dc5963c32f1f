"""Attention rows and columns without the attention matrix.

A softmax row needs its own logits only, and a column sum needs one chunk of rows at a time: nothing here holds T x T
numbers, and the fused kernels of the forward pass stay as they are. All in float32, whatever the inputs are.

Shapes: B rows of a batch, H query heads, K key heads, R score rows, T queries, S keys, D head width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Projected:
    """Queries (B,H,T,D) and keys (B,K,S,D) as an attention kernel gets them; the queries are the last T of the keys."""

    queries: Tensor
    keys: Tensor
    scale: float
    softcap: float | None = None


def rows(seen: Projected, index: Tensor, mask: Tensor | None = None) -> Tensor:
    """(B,H,R,S) attention of the queries at `index` (B,R) over all keys that `mask` (B,R,S) lets them see."""
    queries = seen.queries.gather(2, index[:, None, :, None].expand(-1, seen.queries.shape[1], -1, seen.queries.shape[3]))
    return _softmax(queries, seen, mask)


def columns(seen: Projected, mask: Tensor | None = None, *, chunk: int = 256) -> Tensor:
    """(B,H,S) attention that each key receives, summed over all queries; `mask` is (B,T,S)."""
    total = 0.0
    for start in range(0, seen.queries.shape[2], chunk):
        part = slice(start, start + chunk)
        total = total + _softmax(seen.queries[:, :, part], seen, None if mask is None else mask[:, part]).sum(2)
    return total


def _softmax(queries: Tensor, seen: Projected, mask: Tensor | None) -> Tensor:
    batch, heads, count, width = queries.shape
    # the query heads of one key head side by side: keys are not repeated
    grouped = queries.float().reshape(batch, seen.keys.shape[1], -1, width)
    logits = (grouped @ seen.keys.float().transpose(2, 3)).view(batch, heads, count, -1) * seen.scale
    if seen.softcap is not None:
        logits = torch.tanh(logits / seen.softcap) * seen.softcap
    if mask is not None:
        # a row that sees nothing attends to nothing, instead of being NaN
        logits = logits.masked_fill(~mask[:, None], float("-inf"))
        return torch.softmax(logits, -1).masked_fill(~mask[:, None].any(-1, keepdim=True), 0.0)
    return torch.softmax(logits, -1)
