"""Block lists: which blocks of keys a block of queries must read, whole or in part. What a Triton kernel loops over.

Shapes: R rows, H heads (1 when all agree), M blocks of queries, N blocks of keys.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gnomon.kernels.mask import Bound
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
    """Classify every block, one strip of queries at a time (the whole mask is never in memory); kept with the mask."""
    wanted = ("lists", heads if bound.rule.per_head else 1, block_q, block_k)
    return once(bound.cache, wanted, lambda: _block_lists(bound, heads, block_q, block_k))


def _block_lists(bound: Bound, heads: int, block_q: int, block_k: int) -> BlockLists:
    # small integers are summed in a tenth of the time on a CPU
    counts, small = [], torch.int16 if block_q < 2**15 else torch.int32
    for start in range(0, bound.q.length, block_q):
        strip = bound.dense(heads, start=start, stop=start + block_q).view(torch.uint8).sum(2, dtype=small)
        short = -strip.shape[-1] % block_k
        counts.append(torch.nn.functional.pad(strip, (0, short)).unflatten(-1, (-1, block_k)).sum(-1))
    count = torch.stack(counts, 2)
    full = count == block_q * block_k
    size = (bound.q.length, bound.k.length)
    return BlockLists(*_listed(full), *_listed((count > 0) & ~full), (block_q, block_k), size)


def partial_tiles(lists: BlockLists, bound: Bound, heads: int = 1) -> Tensor:
    """(R,H,M,n,block_q,block_k) bool: the pairs inside the partial blocks, in the order of `partial_index`."""
    block_q, block_k = lists.block
    dense = bound.dense(heads)
    dense = torch.nn.functional.pad(dense, (0, -dense.shape[3] % block_k, 0, -dense.shape[2] % block_q))
    tiles = dense.unflatten(3, (-1, block_k)).unflatten(2, (-1, block_q)).transpose(3, 4)
    index = lists.partial_index.long()[..., None, None].expand(*lists.partial_index.shape, block_q, block_k)
    listed = torch.arange(index.shape[3], device=index.device) < lists.partial_count[..., None]
    return tiles.gather(3, index) & listed[..., None, None]


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
