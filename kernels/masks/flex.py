"""FlexAttention's view of a mask: a predicate of one pair, the BlockMask made from it, and the compiled function."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention
from torch.nn.functional import pad

from gnomon.kernels.mask import Bound
from gnomon.kernels.masks.blocks import block_lists
from gnomon.kernels.masks.keeping import once
from gnomon.kernels.masks.tokens import Tokens

LIMIT = 256
"""Rules and kinds of shapes that are compiled at most; torch's own 8 are for functions that should not need many."""


class _Pair:
    """One query and one key; all members are scalars, FlexAttention maps over them."""

    def __init__(self, queries: Tokens, keys: Tokens, row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> None:
        self.queries, self.keys, self.row, self.head, self.query, self.key = queries, keys, row, head, query, key

    def q(self, name: str) -> Tensor:
        if name in ("row", "index"):
            return self.row if name == "row" else self.query
        values = self.queries[name]
        return values[self.row % values.shape[0], self.query]

    def k(self, name: str) -> Tensor:
        if name == "index":
            return self.key
        values = self.keys[name]
        return values[self.row % values.shape[0], self.key]

    def look(self, table: Tensor, *place: Tensor) -> Tensor:
        return table[place]


def mask_mod(bound: Bound) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
    # what is compiled for the CPU cannot read strided fields
    q, k = (Tokens({name: x.contiguous() for name, x in side.fields.items()}) for side in (bound.q, bound.k))

    def allowed(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return bound.rule.allow(_Pair(q, k, row, head, query, key))

    return allowed


def block_mask(bound: Bound, *, heads: int, block: int = 128) -> BlockMask:
    """The BlockMask of a rule, kept with it; made strip by strip, as torch's own maker holds all pairs at once."""
    return once(bound.cache, ("flex", heads, block), lambda: _block_mask(bound, heads, block))


def _block_mask(bound: Bound, heads: int, block: int) -> BlockMask:
    lists = block_lists(bound, heads=heads, block_q=block, block_k=block)
    columns = -(-bound.k.length // block)

    def padded(index: Tensor) -> Tensor:
        """As many columns as there are blocks of keys: BlockMask asks for them to transpose the lists."""
        return pad(index, (0, columns - index.shape[-1]))

    return BlockMask.from_kv_blocks(
        lists.partial_count,
        padded(lists.partial_index),
        lists.full_count,
        padded(lists.full_index),
        BLOCK_SIZE=block,
        mask_mod=mask_mod(bound),
        seq_lengths=lists.size,
    )


def compiled(q: Tensor, k: Tensor, v: Tensor, *, mask: BlockMask, scale: float) -> Tensor:
    """FlexAttention on (B,H,T,D), compiled or refused: beyond its limit torch would go on with the plain form, which
    holds all scores.
    """
    if torch.compiler.is_compiling():
        return flex_attention(q, k, v, block_mask=mask, scale=scale)
    # imported late: it takes long
    from torch._dynamo import config, exc

    # torch 2.6 has another name for the error, and its name for the limit is known to all later ones
    too_many = getattr(exc, "FailOnRecompileLimitHit", None) or exc.FailOnCacheLimitHit
    try:
        with config.patch(cache_size_limit=LIMIT):
            return torch.compile(flex_attention, fullgraph=True)(q, k, v, block_mask=mask, scale=scale)
    except too_many as error:
        remedy = "use another impl (chunk), or call torch.compiler.reset() now and then"
        raise ValueError(f"flex: torch compiles no more than {LIMIT} masks and shapes; {remedy}") from error


def densify(mask: BlockMask, bound: Bound, heads: int) -> Tensor:
    """What a kernel that follows the BlockMask lets through: full blocks whole, partial ones by the rule."""
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
