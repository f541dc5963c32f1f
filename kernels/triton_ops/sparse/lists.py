"""Lists of blocks as the kernels read them: end to end, per block of queries and again per block of keys.

Shapes: R rows and h heads that the lists know (1 stands for all), M blocks of queries, N blocks of keys, E entries.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from gnomon.kernels.mask import Bound
from gnomon.kernels.masks.blocks import BlockLists, block_lists, partial_pairs
from gnomon.kernels.masks.keeping import once


@dataclass(frozen=True)
class Entries:
    """The blocks of keys of every block of queries, and the same entries sorted by the block of keys.

    first, block         (R*h*M + 1,), (E,) int32   entries first[i] .. first[i + 1] belong to block of queries i
    key_first, key_block  (R*h*N + 1,), (E,) int32   the other way round
    key_entry            (E,) int32                  where the entry stands in `block`
    """

    first: Tensor
    block: Tensor
    key_first: Tensor
    key_block: Tensor
    key_entry: Tensor


@dataclass(frozen=True)
class Lists:
    """What a block of queries reads: whole blocks, and blocks of which `bits` says the pairs.

    bits  (E of partial, block_q) int64, bit c is the c-th key of the block
    rows, heads, blocks  R, h, (M, N)
    """

    full: Entries
    partial: Entries | None
    bits: Tensor | None
    block: tuple[int, int]
    rows: int
    heads: int
    blocks: tuple[int, int]


def whole(index: Tensor, listed: Tensor, *, block: tuple[int, int], keys: int) -> Lists:
    """Chosen blocks without a mask inside: index (R,h,M,n), of which `listed` (bool, broadcast) says what counts."""
    rows, heads, many, _ = index.shape
    columns = -(-keys // block[1])
    return Lists(_entries(index, listed, columns), None, None, block, rows, heads, (many, columns))


def from_mask(bound: Bound, *, heads: int, block_q: int = 64, block_k: int = 64) -> Lists:
    """The lists of a static mask; kept with it."""
    wanted = ("kernel lists", heads if bound.rule.per_head else 1, block_q, block_k)
    return once(bound.cache, wanted, lambda: _from_mask(bound, heads, block_q, block_k))


def _from_mask(bound: Bound, heads: int, block_q: int, block_k: int) -> Lists:
    found = block_lists(bound, heads=heads, block_q=block_q, block_k=block_k)
    rows, many, blocks, _ = found.full_index.shape
    columns = -(-found.size[1] // block_k)
    full, partial = (
        _entries(index, torch.arange(index.shape[3], device=index.device) < count[..., None], columns)
        for count, index in ((found.full_count, found.full_index), (found.partial_count, found.partial_index))
    )
    return Lists(full, partial, _bits(found, bound, heads), found.block, rows, many, (blocks, columns))


def _entries(index: Tensor, listed: Tensor, columns: int) -> Entries:
    rows, heads, many, _ = index.shape
    listed = listed.expand(index.shape)
    owner = torch.arange(rows * heads * many, device=index.device).reshape(rows, heads, many, 1).expand(index.shape)
    block, owner = index[listed].long(), owner[listed]
    column = owner // many * columns + block
    order = column.argsort(stable=True)
    return Entries(
        _ends(owner, rows * heads * many),
        block.int(),
        _ends(column, rows * heads * columns),
        (owner % many)[order].int(),
        order.int(),
    )


def _ends(owner: Tensor, many: int) -> Tensor:
    return pad(owner.bincount(minlength=many).cumsum(0), (1, 0)).int()


def _bits(lists: BlockLists, bound: Bound, heads: int) -> Tensor:
    """The pairs of the partial blocks."""
    assert lists.block[1] <= 64, "a row of a block is one int64"
    place = torch.arange(lists.block[1], device=bound.q["p"].device)
    weight = torch.ones_like(place) << place
    return partial_pairs(lists, bound, heads, lambda pairs: (pairs * weight).sum(-1))
