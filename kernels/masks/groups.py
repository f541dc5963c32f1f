"""Group lowering: a rule that is an equivalence becomes a batch of small dense attentions: no sparse kernel beats it.

`Group` atoms (part, residue, same, equal) and their conjunctions are equivalences; so are segments. Joined with CAUSAL
each group is causal in itself, because the order inside a group is kept.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gnomon.kernels.mask import And, Bound, Causal, Everything, Expr, InSegment
from gnomon.kernels.masks.atoms import Group
from gnomon.kernels.masks.keeping import once


@dataclass(frozen=True)
class Groups:
    """Groups of equal size stand together, so that each size is one batched attention.

    index   one (n, size) long tensor per size: places in the row, or in the flattened rows when there are several
    causal  each group is causal in the order of its places
    rows    1: the same groups for the whole batch
    """

    index: list[Tensor]
    causal: bool
    rows: int


def groups(bound: Bound) -> Groups | None:
    """The groups of a rule, or None when it is no equivalence (or queries and keys differ); kept with the mask."""
    return once(bound.cache, "groups", lambda: _groups(bound))


def _groups(bound: Bound) -> Groups | None:
    factors = bound.rule.factors() if isinstance(bound.rule, And) else [bound.rule]
    if bound.q is not bound.k or not all(isinstance(f, (Group, Causal, Everything, InSegment)) for f in factors):
        return None
    tokens, causal = bound.q, Causal() in factors
    place = torch.arange(tokens.rows * tokens.length, device=tokens["p"].device)
    keys = [place // tokens.length] + [k for f in factors if (k := _key(f, bound)) is not None]
    if bound.segmented:
        real = tokens["segment"].flatten() >= 0
        place, keys = place[real], [key[real] for key in keys]
    if causal:
        later = tokens["p"].flatten()[place].argsort(stable=True)
        place, keys = place[later], [key[later] for key in keys]
    if not len(place):
        return Groups([], causal, tokens.rows)
    _, member, size = torch.stack(keys).unique(dim=1, return_inverse=True, return_counts=True)
    place = place[member.argsort(stable=True)]
    if causal and _ties(tokens["p"].flatten()[place], size):
        return None
    starts = size.cumsum(0) - size
    index = []
    for n in size.unique().tolist():
        first = starts[size == n]
        index.append(place[first[:, None] + torch.arange(n, device=first.device)])
    return Groups(index, causal, tokens.rows)


def _ties(position: Tensor, size: Tensor) -> bool:
    """Two tokens of a group at one position see each other: no order of the group says that."""
    inside = torch.ones_like(position, dtype=torch.bool)
    inside[size.cumsum(0) - size] = False
    return bool((inside[1:] & (position.diff() == 0)).any())


def _key(factor: Expr, bound: Bound) -> Tensor | None:
    if isinstance(factor, Group):
        return factor.key(bound.q[factor.field]).flatten()
    if isinstance(factor, InSegment):
        return bound.q["segment"].flatten()
    return None


def densify(found: Groups, bound: Bound) -> Tensor:
    """(R,1,T,T) bool: the pairs that the groups compute."""
    length = bound.q.length
    dense = torch.zeros(found.rows * length, found.rows * length, dtype=torch.bool)
    for index in found.index:
        pairs = torch.ones(index.shape[1], index.shape[1], dtype=torch.bool)
        dense[index[:, :, None], index[:, None, :]] = pairs.tril() if found.causal else pairs
    blocks = dense.reshape(found.rows, length, found.rows, length)
    return torch.stack([blocks[r, :, r] for r in range(found.rows)])[:, None]
