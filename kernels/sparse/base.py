"""What the sparse operators share: image tokens in tiles, and attention of a tile over just the keys that it sees.

Shapes: M tiles of `block` queries each, U keys that any query of a tile sees.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.nn.functional import pad

from gnomon.kernels import attend
from gnomon.kernels.mask import Bound, Causal, Everything, holds_dense
from gnomon.kernels.masks.bounds import bounds
from gnomon.kernels.masks.keeping import once
from gnomon.kernels.masks.tokens import AXES, Tokens
from gnomon.kernels.op import Impl, Result, Shape, State, interpreter_refuses, triton

TILES = {1: (64,), 2: (8, 8), 3: (4, 4, 4)}
"""The extents of a tile of 64 tokens on a line, an image, a video."""

SIZES = (64, 128, 256)
"""How many queries a CPU may take together: tiles that see the same keys are read for once."""

READING = 60
"""What a CPU takes to read a key for a tile, forward and backward, in pairs of a query and a key."""

STEP = 16
"""Keys that are looked at together, to find those that a tile sees."""

MOST = {torch.bfloat16: 256, torch.float16: 256}
"""How wide heads may be in the kernels of triton_ops/sparse, by dtype; wider ones overflow registers."""

aten = torch.ops.aten


def tile_order(tokens: Tokens) -> Tensor | None:
    """The places of the tokens, tile after tile; None where raster order is as good."""
    axes = [axis for axis in AXES if axis in tokens.fields]
    if len(axes) < 2:
        return None
    order = torch.arange(tokens.length, device=tokens["p"].device)
    names = [name for name in ("segment", "item") if name in tokens.fields]
    keys = [tokens[name][0] for name in names]
    keys += [tokens[axis][0].div(size, rounding_mode="floor") for axis, size in zip(axes, TILES[len(axes)])]
    # stable and from the last key on: sorted by the first one, ties by the next, raster order inside a tile
    for key in reversed(keys):
        order = order[key[order].argsort(stable=True)]
    return order


def in_tiles(
    run: Callable[[Tensor, Tensor, Tensor, Bound], Tensor], q: Tensor, k: Tensor, v: Tensor, mask: Bound
) -> Tensor:
    """run(q, k, v, mask) with the tokens in the order of tiles, and its output back in theirs."""
    found = once(mask.cache, "tiles", lambda: _reordered(mask))
    if found is None:
        return run(q, k, v, mask)
    order, back, reordered = found
    return run(q[:, order], k[:, order], v[:, order], reordered)[:, back]


def _reordered(mask: Bound) -> tuple[Tensor, Tensor, Bound] | None:
    # a dense mask that somebody gave knows its tokens by their places
    moved = mask.q is mask.k and not holds_dense(mask.rule)
    order = tile_order(mask.q) if moved else None
    if order is None:
        return None
    tokens = mask.q.take(order)
    return order, order.argsort(), Bound(mask.expr, tokens, tokens)


def tile(
    q: Tensor, k: Tensor, v: Tensor, *, mask: Bound, scale: float, state: State | None = None, block: int | None = None
) -> Result:
    """Tile after tile of queries, each over the keys that any of its queries sees; a block of None is the cheapest."""
    width = v.shape[3]
    # torch's kernel has one width for all
    q, k, v = (pad(x, (0, max(width, q.shape[3]) - x.shape[3])) for x in (q, k, v))

    def run(q: Tensor, k: Tensor, v: Tensor, mask: Bound) -> Tensor:
        size = block or cheapest(mask, q.shape[2])
        return _Tiles.apply(q, k, v, _seen(mask, q.shape[2], size), size, scale)

    return in_tiles(run, q, k, v, mask)[..., :width], None


class _Tiles(torch.autograd.Function):
    """Over torch's fused kernel for CPUs. What a tile reads is gathered anew in backward: kept, it would be all keys
    again for every few tiles.
    """

    @staticmethod
    def forward(
        ctx: FunctionCtx, q: Tensor, k: Tensor, v: Tensor, tiles: list[tuple[Tensor, Tensor]], block: int, scale: float
    ) -> Tensor:
        outputs, logs = [], []
        for here, (keys, allowed) in zip(q.split(block, 1), tiles):
            read = (x.transpose(1, 2) for x in (here, k.index_select(1, keys), v.index_select(1, keys)))
            seen, hidden = _hidden(allowed, q.dtype)
            o, lse = aten._scaled_dot_product_flash_attention_for_cpu(*read, attn_mask=hidden, scale=scale)
            outputs.append(o.masked_fill_(~seen, 0))
            logs.append(lse)
        ctx.save_for_backward(q, k, v, *outputs, *logs)
        ctx.fixed = tiles, block, scale
        return torch.cat(outputs, 2).transpose(1, 2)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, do: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, *made = ctx.saved_tensors
        tiles, block, scale = ctx.fixed
        wide = torch.promote_types(q.dtype, torch.float32)
        dq, dk, dv = [], torch.zeros_like(k, dtype=wide), torch.zeros_like(v, dtype=wide)
        each = zip(q.split(block, 1), do.split(block, 1), tiles, made, made[len(tiles) :])
        for here, direction, (keys, allowed), o, lse in each:
            read = (direction, here, k.index_select(1, keys), v.index_select(1, keys))
            direction, *read = (x.transpose(1, 2) for x in read)
            seen, hidden = _hidden(allowed, q.dtype)
            mine, *theirs = aten._scaled_dot_product_flash_attention_for_cpu_backward(
                direction * seen, *read, o, lse, 0.0, False, attn_mask=hidden, scale=scale
            )
            dq.append(mine)
            for whole, part in zip((dk, dv), theirs):
                # copied, not added: torch adds row by row
                whole.index_copy_(1, keys, whole.index_select(1, keys).add_(part.transpose(1, 2)))
        return torch.cat(dq, 2).transpose(1, 2), dk.to(k.dtype), dv.to(v.dtype), None, None, None


def _hidden(allowed: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Which queries see something, and what is added to the scores; a query that sees nothing reads all."""
    seen = allowed.any(-1, keepdim=True)
    return seen, torch.zeros(allowed.shape, dtype=dtype).masked_fill_(seen & ~allowed, -torch.inf)


def cheapest(mask: Bound, heads: int) -> int:
    """Of SIZES: larger tiles read less, and compute more that is hidden."""

    def found() -> int:
        _, some = bounds(mask, heads, min(SIZES), STEP)
        read = some.flatten(0, 1).any(0)

        def cost(size: int) -> int:
            joined = pad(read, (0, 0, 0, -len(read) % (size // min(SIZES)))).unflatten(0, (-1, size // min(SIZES)))
            return (READING + size) * int(joined.any(1).sum())

        return min(SIZES, key=cost)

    return once(mask.cache, ("cheapest", heads if mask.rule.per_head else 1), found)


def _seen(mask: Bound, heads: int, block: int) -> list[tuple[Tensor, Tensor]]:
    """Per tile, the keys (U,) and the pairs (R,h,block,U) of the mask; kept with it."""

    def found() -> list[tuple[Tensor, Tensor]]:
        tiles, place = [], torch.arange(mask.k.length, device=mask.k["p"].device)
        every, some = (x.flatten(0, 1) for x in bounds(mask, heads, block, STEP))
        for number, steps in enumerate(zip(every.all(0), some.any(0))):
            sure, maybe = (x.repeat_interleave(STEP)[: len(place)] for x in steps)
            sure, maybe = place[sure], place[maybe & ~sure]
            pairs = mask.dense(heads, start=number * block, stop=(number + 1) * block, keys=maybe)
            # `any` of booleans takes fifty times as long on a CPU
            seen = pairs.flatten(0, 2).view(torch.uint8).amax(0).nonzero()[:, 0]
            if not len(sure) + len(seen):
                # a tile that sees nothing reads one key, and nothing of it
                tiles.append((place[:1], pairs.new_zeros(*pairs.shape[:3], 1)))
                continue
            whole = pairs.new_ones(*pairs.shape[:3], len(sure))
            tiles.append((torch.cat([sure, maybe[seen]]), torch.cat([whole, pairs[..., seen]], 3)))
        return tiles

    return once(mask.cache, ("seen", heads if mask.rule.per_head else 1, block), found)


def tile_refuses(shape: Shape, mask: Bound) -> str | None:
    return "tiles are for the CPU" if shape.device.type != "cpu" else None


def sdpa_declines(shape: Shape, mask: Bound) -> str | None:
    plain = not mask.segmented and isinstance(mask.expr, (Everything, Causal))
    return None if plain else "it would compute the hidden pairs too"


def twin_refuses(shape: Shape, mask: Bound) -> str | None:
    """What the kernels of triton_ops/sparse do not hold; of blocks they make tiles, so these may have any length."""
    most = MOST.get(shape.dtype, 128)
    wide = max(shape.width, shape.value_width)
    if wide > most:
        return f"heads are {wide} wide, the kernels take {most} in {str(shape.dtype).removeprefix('torch.')}"
    return interpreter_refuses(shape, mask)


IMPLS = {
    **attend.IMPLS,
    "sdpa": Impl(attend.sdpa, packed=True, grouped=True, declines=sdpa_declines),
    "tile": Impl(tile, tile_refuses, packed=True),
    "triton": triton("sparse.blocks:attend", refuses=twin_refuses, packed=True),
}
AUTO = ("sdpa", "group", "triton", "tile", "flex", "chunk")
"""For static patterns: any mask, one implementation after the other."""
