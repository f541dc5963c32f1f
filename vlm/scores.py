"""Attention rows, columns and averages without the attention matrix.

A softmax row needs its own logits only, a column sum needs one chunk of rows at a time, and whatever is a mean over a
row comes out of a fused kernel that gets it in the place of the values. Nothing here holds T x T numbers, and the fused
kernels of the forward pass stay as they are. All in float32, whatever the inputs are.

Shapes: B rows of a batch, H query heads, K key heads, R score rows, T queries, S keys, D head width, A values per key.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from gnomon.kernels import scores


@dataclass(frozen=True)
class Projected:
    """Queries (B,H,T,D) and keys (B,K,S,D) as an attention kernel gets them; the queries are the last T of the keys."""

    queries: Tensor
    keys: Tensor
    scale: float
    softcap: float | None = None

    def one_head(self) -> Projected:
        """The same with all heads side by side as a single one, of the scale that its width asks for."""
        queries, keys = (x.transpose(1, 2).flatten(2)[:, None] for x in (self.queries, self.keys))
        return Projected(queries, keys, queries.shape[3] ** -0.5)


def rows(seen: Projected, index: Tensor, mask: scores.Sight = None, *, impl: str = "auto") -> Tensor:
    """(B,H,R,S) attention of the queries at `index` (B,R) over all keys that `mask`, (B,R,S) or limits, lets them see.

    On a GPU, where no gradient is wanted, by a kernel; `impl` and what it was are those of kernels/op.py.
    """
    _, heads, _, width = seen.queries.shape
    queries = seen.queries.gather(2, index[:, None, :, None].expand(-1, heads, -1, width))
    how = {"scale": seen.scale, "softcap": seen.softcap, "sight": mask, "impl": impl}
    return scores.rows(queries.transpose(1, 2), seen.keys.transpose(1, 2), **how)


def columns(seen: Projected, mask: scores.Sight = None, *, chunk: int | None = None, impl: str = "auto") -> Tensor:
    """(B,H,S) attention that each key receives, summed over all queries; `mask` is (B,T,S), or limits.

    By a kernel like `rows`, or `chunk` queries at a time.
    """
    how = {"scale": seen.scale, "softcap": seen.softcap, "sight": mask, "impl": impl}
    return scores.columns(seen.queries.transpose(1, 2), seen.keys.transpose(1, 2), chunk=chunk, **how)


def average(seen: Projected, values: Tensor, mask: Tensor | None = None) -> Tensor:
    """(B,H,T,A) mean of what the keys carry, (B,S,A), over the attention of each query; it has a gradient.

    With coordinates: the centroid that each query looks at. `mask` is (B,T,S).
    """
    return _fused(seen, values.float()[:, None].expand(-1, seen.keys.shape[1], -1, -1), mask)


def masses(seen: Projected, segment: Tensor, count: int, mask: Tensor | None = None) -> Tensor:
    """(B,H,T,count) share of each query's attention on each segment's keys; `segment` (B,S) is below 0 for none."""
    member = F.one_hot(segment.clamp(min=-1) + 1, count + 1)[..., 1:]
    return average(seen, member, mask)


def entropy(seen: Projected, mask: Tensor | None = None) -> Tensor:
    """(B,H,T) entropy of each query's attention, in nats, from two calls of the fused kernel.

    With E the mean logit of a row and Z the sum of its exponentials, the entropy is log Z - E. The first call gives E
    (keys as values); a key with logit E that joins in the second one gets the share p = 1 / (1 + exp(log Z - E)), so
    that the entropy is log(1/p - 1), precise because p lies between 1 / (S + 1) and 1/2.
    """
    queries, keys = seen.queries.float(), seen.keys.float()
    meant = _fused(seen, keys, mask)
    aim = (queries * meant).sum(3, keepdim=True)
    # one more channel makes the logit of one more key, and room beside it keeps the width a multiple of 8
    room = queries.new_zeros(*queries.shape[:3], -(queries.shape[3] + 1) % 8)
    queries = torch.cat([queries, aim, room], 3)
    keys = F.pad(keys, (0, queries.shape[3] - keys.shape[3], 0, 1))
    keys[:, :, -1, seen.keys.shape[3]] = 1
    marked = torch.zeros_like(keys[..., :1])
    marked[:, :, -1] = 1
    mask = None if mask is None else F.pad(mask, (0, 1), value=True)
    share = _fused(replace(seen, queries=queries, keys=keys), marked, mask)
    # a row that sees one key or none is certain
    return torch.log1p(-share[..., 0]).sub(share[..., 0].log()).clamp(min=0)


def _fused(seen: Projected, values: Tensor, mask: Tensor | None) -> Tensor:
    """(B,H,T,A) attention over values (B,K,S,A) through torch's fused kernel."""
    if seen.softcap is not None:
        raise ValueError(f"attention capped at {seen.softcap} has no fused kernel; use rows or columns")
    queries, keys = seen.queries.float(), seen.keys.float()
    width = queries.shape[3]
    # kernels want values as wide as keys: several calls where they are wider
    parts = [F.pad(part, (0, width - part.shape[3])) for part in values.split(width, 3)]
    seen_by = None if mask is None else mask[:, None]
    grouped = queries.shape[1] != keys.shape[1]
    out = [
        F.scaled_dot_product_attention(queries, keys, part, attn_mask=seen_by, scale=seen.scale, enable_gqa=grouped)
        for part in parts
    ]
    found = torch.cat(out, 3)[..., : values.shape[3]]
    return found if mask is None else found.masked_fill(~mask[:, None].any(-1, keepdim=True), 0.0)
