"""FlexAttention's view of a mask: a predicate of one pair, and the BlockMask made from it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask

from gnomon.kernels.mask import Bound


class _Pair:
    """One query and one key; all members are scalars, FlexAttention maps over them."""

    def __init__(self, bound: Bound, row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> None:
        self.bound, self.row, self.head, self.query, self.key = bound, row, head, query, key

    def q(self, name: str) -> Tensor:
        if name in ("row", "index"):
            return self.row if name == "row" else self.query
        values = self.bound.q[name]
        return values[self.row % values.shape[0], self.query]

    def k(self, name: str) -> Tensor:
        if name == "index":
            return self.key
        values = self.bound.k[name]
        return values[self.row % values.shape[0], self.key]


def mask_mod(bound: Bound) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
    def allowed(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return bound.rule.allow(_Pair(bound, row, head, query, key))

    return allowed


def block_mask(bound: Bound, *, heads: int, block: int = 128) -> BlockMask:
    """The BlockMask of a rule, kept with it."""
    wanted = ("flex", heads, block)
    if wanted not in bound.cache:
        bound.cache[wanted] = create_block_mask(
            mask_mod(bound),
            B=bound.rows if bound.rows > 1 else None,
            H=heads if bound.rule.per_head else None,
            Q_LEN=bound.q.length,
            KV_LEN=bound.k.length,
            device=str(bound.q["p"].device),
            BLOCK_SIZE=block,
        )
    found = bound.cache[wanted]
    assert isinstance(found, BlockMask)
    return found


def densify(mask: BlockMask, bound: Bound, heads: int) -> Tensor:
    """What a kernel that follows the BlockMask lets through: full blocks whole, partial ones by the predicate."""
    block_q, block_k = mask.BLOCK_SIZE
    partial = _dense(mask.kv_num_blocks, mask.kv_indices)
    full = torch.zeros_like(partial)
    if mask.full_kv_num_blocks is not None:
        full = _dense(mask.full_kv_num_blocks, mask.full_kv_indices)

    def spread(blocks: Tensor) -> Tensor:
        whole = blocks.bool().repeat_interleave(block_q, 2).repeat_interleave(block_k, 3)
        return whole[:, :, : bound.q.length, : bound.k.length]

    return spread(full) | (spread(partial) & bound.dense(heads))


def _dense(count: Tensor, index: Tensor) -> Tensor:
    listed = torch.arange(index.shape[-1], device=index.device) < count[..., None]
    return torch.zeros(index.shape, dtype=torch.long, device=index.device).scatter_add_(-1, index.long(), listed.long())
