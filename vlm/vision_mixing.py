"""Operators and mixers in a timm vision transformer: each sits where its block had the self-attention.

A block runs as it always did. What it does not know is the grid of its tokens: `tell` says it before the model runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from gnomon.vlm.layout import Kind, TokenLayout
from gnomon.vlm.mixers.base import Attention, Mixer
from gnomon.vlm.mixing import cut
from gnomon.vlm.operators import Operator
from gnomon.vlm.placement import chosen


@dataclass
class Grid:
    """Of the images that are being read: (rows, columns), behind `prefix` class and register tokens."""

    prefix: int
    size: tuple[int, int] = field(default=(0, 0))


class Operating(nn.Module):
    """timm's attention with its own parts, but for the softmax."""

    def __init__(self, attention: nn.Module, operator: Operator, grid: Grid) -> None:
        super().__init__()
        for name, part in attention.named_children():
            self.add_module(name, part)
        self.num_heads, self.scale = attention.num_heads, attention.scale
        self.operator, self.grid = operator, grid

    def forward(self, x: Tensor, **unused: Any) -> Tensor:
        q, k, v = self.qkv(x).unflatten(2, (3, self.num_heads, -1)).unbind(2)
        q, k = self.q_norm(q), self.k_norm(k)
        o = self.operator.everything(q, k, v, scale=self.scale, grid=self.grid.size, prefix=self.grid.prefix)
        return self.proj_drop(self.proj(self.norm(o.flatten(2))))


class VisionSeat(nn.Module):
    """A mixer, called like timm's attention."""

    def __init__(self, mixer: Mixer, heads: int, grid: Grid) -> None:
        super().__init__()
        self.mixer, self.num_heads, self.grid = mixer, heads, grid

    def forward(self, x: Tensor, **unused: Any) -> Tensor:
        return self.mixer(x, layout_of(len(x), self.grid, x.device))[0]


def layout_of(images: int, grid: Grid, device: torch.device) -> TokenLayout:
    """What stands where in an encoder's sequences."""
    cells = torch.cartesian_prod(*(torch.arange(side, device=device) for side in grid.size))
    layout = TokenLayout.text(images, grid.prefix + len(cells), device=device)
    kind, image, cell = layout.kind, layout.image, layout.cell
    kind[:, grid.prefix :], image[:, grid.prefix :], cell[:, grid.prefix :] = Kind.IMAGE, 0, cells
    return replace(layout, kind=kind, image=image, cell=cell)


def mix(model: nn.Module, operators: Sequence[Operator], mixers: Sequence[Mixer]) -> Grid:
    """Put them into the blocks that they are for; returns what is to be told of the images."""
    # here and not above: the model imports what this file imports, and what needs no timm should not wait for it
    from timm.layers import Attention as TimmAttention

    grid = Grid(getattr(model, "num_prefix_tokens", 0))
    blocks = getattr(model, "blocks", ())
    plain = [type(getattr(block, "attn", None)) is TimmAttention and not _gated(block.attn) for block in blocks]
    taken: set[int] = set()
    for one in (*operators, *mixers):
        name = one.name if isinstance(one, Operator) else type(one).__name__
        for index in chosen(one.layers, len(blocks), what=name):
            if not plain[index] or index in taken:
                why = "has another already" if index in taken else "has no plain attention"
                raise ValueError(f"{name}: block {index} of {type(model).__name__} {why}; give it other layers")
            taken.add(index)
            attention = blocks[index].attn
            if attention.attn_drop.p:
                raise ValueError(
                    f"{name}: block {index} has dropout of its attention; give args without attn_drop_rate"
                )
            if isinstance(one, Operator):
                blocks[index].attn = Operating(attention, one, grid)
                continue
            if one.causal:
                raise ValueError(f"{name} reads tokens in order; it is for decoders")
            fresh = type(one)(**one.init_args)
            fresh.setup(_facts(attention, index, len(blocks), grid.prefix))
            blocks[index].attn = VisionSeat(fresh, attention.num_heads, grid)
    return grid


def _gated(attention: nn.Module) -> bool:
    return getattr(attention, "gate", None) is not None


def _facts(attention: nn.Module, layer: int, depth: int, prefix: int) -> Attention:
    heads, dim, width = attention.num_heads, attention.head_dim, attention.qkv.in_features
    maps: dict[str, nn.Module] = dict(zip(("q_proj", "k_proj", "v_proj"), cut(attention.qkv, [heads * dim] * 3)))
    maps["o_proj"] = nn.Sequential(attention.norm, attention.proj, attention.proj_drop)
    maps |= {n: m for n in ("q_norm", "k_norm") if not isinstance(m := getattr(attention, n), nn.Identity)}
    return Attention(maps, width, heads, heads, dim, attention.scale, layer, depth, prefix=prefix)
