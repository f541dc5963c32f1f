"""Block lists: which blocks of keys a block of queries must read, whole or in part. What a Triton kernel loops over.

Shapes: R rows, H heads (1 when all agree), M blocks of queries, N blocks of keys.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from gnomon.kernels.mask import Bound
from gnomon.kernels.masks.bounds import bounds
from gnomon.kernels.masks.keeping import once


@dataclass(frozen=True)
class BlockLists:
    """Lists per block of queries; only the first `count` entries of an `index` row mean anything (the rest is 0).

    full_count, partial_count  (R,H,M) int32
    full_index, partial_index  (R,H,M,n) int32   ascending blocks of keys
    A block that reaches over the end of the tokens is never full, so that full blocks need no bounds check.
    """

    full_count: Tensor
    full_index: Tensor
    partial_count: Tensor
    partial_index: Tensor
    block: tuple[int, int]
    size: tuple[int, int]

    @property
    def visited(self) -> Tensor:
        """(R,H,M,N) bool: full or partial."""
        full, partial = self.dense()
        return full | partial

    def dense(self) -> tuple[Tensor, Tensor]:
        """(R,H,M,N) bool each: the full blocks and the partial ones."""
        columns = -(-self.size[1] // self.block[1])
        return spread(self.full_count, self.full_index, columns), spread(
            self.partial_count, self.partial_index, columns
        )

    @property
    def density(self) -> float:
        """The share of all blocks that is read: what a kernel pays, unlike the share of allowed pairs."""
        return float(self.visited.float().mean())

    def transposed(self) -> BlockLists:
        """The same blocks listed per block of keys, for the gradients of keys and values."""
        full, partial = self.dense()
        return BlockLists(*_listed(full.mT), *_listed(partial.mT), self.block[::-1], self.size[::-1])

    def densify(self, bound: Bound, heads: int) -> Tensor:
        """(R,H,Q,K) bool: what a kernel that follows the lists lets through."""

        def whole(blocks: Tensor) -> Tensor:
            pairs = blocks.repeat_interleave(self.block[0], 2).repeat_interleave(self.block[1], 3)
            return pairs[:, :, : self.size[0], : self.size[1]]

        full, partial = self.dense()
        return whole(full) | (whole(partial) & bound.dense(heads))


def block_lists(bound: Bound, *, heads: int = 1, block_q: int = 64, block_k: int = 64) -> BlockLists:
    """Classify every block; kept with the mask."""
    wanted = ("lists", heads if bound.rule.per_head else 1, block_q, block_k)
    return once(bound.cache, wanted, lambda: _block_lists(bound, heads, block_q, block_k))


def _block_lists(bound: Bound, heads: int, block_q: int, block_k: int) -> BlockLists:
    size, block = (bound.q.length, bound.k.length), (block_q, block_k)
    full, visited = (x.clone() for x in bounds(bound, heads, block_q, block_k))
    if size[0] % block_q:
        full[:, :, -1] = False
    if size[1] % block_k:
        full[..., -1] = False
    # what the bounds leave open, the pairs say
    for place, pairs in pairs_of(bound, heads, (visited & ~full).flatten(0, 1).any(0).nonzero(), block):
        # `all` and `any` of booleans take fifty times as long on a CPU
        bits, (m, n) = pairs.flatten(3).view(torch.uint8), place.T
        full[:, :, m, n], visited[:, :, m, n] = bits.amin(3).bool(), bits.amax(3).bool()
    return BlockLists(*_listed(full), *_listed(visited & ~full), block, size)


def pairs_of(
    bound: Bound, heads: int, blocks: Tensor, block: tuple[int, int], most: int = 2**22
) -> Iterator[tuple[Tensor, Tensor]]:
    """Blocks (u,2), numbers in M and N, some at a time, and their pairs (R,h,u,block_q,block_k) bool.

    most  pairs at a time. Hidden are those of tokens that do not exist
    """
    each = bound.rows * (heads if bound.rule.per_head else 1) * block[0] * block[1]
    for some in blocks.split(max(most // each, 1)):
        q, k = (some[:, side, None] * block[side] + torch.arange(block[side], device=some.device) for side in (0, 1))
        q, k = q[:, :, None], k[:, None]
        pairs = bound.pairs(heads, q.clamp(max=bound.q.length - 1), k.clamp(max=bound.k.length - 1))
        yield some, pairs & (q < bound.q.length) & (k < bound.k.length)


def visible_pairs(bound: Bound, heads: int = 1, *, block: int = 64) -> float:
    """How many pairs a mask lets through, on average over its rows and heads."""
    every, some = bounds(bound, heads, block, block)
    undecided = (some & ~every).flatten(0, 1).any(0)
    starts = (torch.arange(0, side.length, block, device=every.device) for side in (bound.q, bound.k))
    height, width = ((n - start).clamp(max=block) for n, start in zip((bound.q.length, bound.k.length), starts))
    found = int(((every & ~undecided) * height[:, None] * width).sum())
    found += sum(int(pairs.sum()) for _, pairs in pairs_of(bound, heads, undecided.nonzero(), (block, block)))
    return found / (len(every) * every.shape[1])


def partial_pairs(lists: BlockLists, bound: Bound, heads: int, read: Callable[[Tensor], Tensor]) -> Tensor:
    """(e,...) what `read` makes of (R,h,u,block_q,block_k), at every listed entry of `partial_index`, end to end."""
    columns = -(-lists.size[1] // lists.block[1])
    index = lists.partial_index
    listed = torch.arange(index.shape[3], device=index.device) < lists.partial_count[..., None]
    row, head, m, _ = listed.nonzero().T
    number, inverse = (m * columns + index[listed]).unique(return_inverse=True)
    blocks = torch.stack([number // columns, number % columns], 1)
    if not len(blocks):
        # of no block, so that it has its shape
        blocks = blocks.new_zeros(1, 2)
    found = torch.cat([read(pairs) for _, pairs in pairs_of(bound, heads, blocks, lists.block)], 2)
    return found[row, head, inverse]


def spread(count: Tensor, index: Tensor, columns: int) -> Tensor:
    """Lists back to (..., columns) bool."""
    listed = torch.arange(index.shape[-1], device=index.device) < count[..., None]
    hits = torch.zeros(*index.shape[:-1], columns, dtype=torch.int32, device=index.device)
    return hits.scatter_add_(-1, index.long(), listed.int()) > 0


def _listed(chosen: Tensor) -> tuple[Tensor, Tensor]:
    count = chosen.sum(-1, dtype=torch.int32)
    # stable: the chosen ones come first and stay in order
    order = chosen.int().argsort(dim=-1, descending=True, stable=True)[..., : max(int(count.max()), 1)]
    listed = torch.arange(order.shape[-1], device=order.device) < count[..., None]
    return count, torch.where(listed, order, 0).int()
