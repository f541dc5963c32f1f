"""Qwen2.5-VL's vision tower: any resolution, attention in windows, blocks of 2 x 2 patches merged into one token.

Paper:   Qwen2.5-VL Technical Report. arXiv:2502.13923
Rule:    blocks attend inside windows of 112 pixels, a few everywhere; behind the last an MLP merges 2 x 2 patches
Where:   the vision encoder, connector included: tokens have the language model's width
Differs: the window order is undone, tokens come in raster order; a token's saliency and keys are its patches' mean
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModel

from gnomon.vlm.encoders.base import Encoder
from gnomon.vlm.layout import Features
from gnomon.vlm.scores import Projected
from gnomon.vlm.taps import NAMES, read, unreadable, watched

_KIND = "qwen2_5_vl"


class Qwen2_5VL(Encoder):
    """config: of the vision part, for random weights; `gnomon import` brings a checkpoint's.

    What a reducer asks for (saliency, keys) is of the last block that attends everywhere.
    """

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        rest = {key: value for key, value in config.items() if key != "model_type"}
        whole = AutoConfig.for_model(_KIND, vision_config=rest)
        self.config = whole.vision_config
        self.tower = AutoModel.from_config(self.config, attn_implementation="sdpa")
        self.side = self.config.spatial_merge_size
        self.width = self.config.out_hidden_size
        self.stride = self.config.patch_size * self.side
        self.everywhere = sorted(self.config.fullatt_block_indexes)
        if not self.everywhere or self.everywhere[-1] >= self.config.depth:
            raise ValueError(
                f"fullatt_block_indexes {self.everywhere} of {self.config.depth} blocks; name one that exists"
            )

    def spec(self) -> dict[str, Any]:
        config = self.config.to_dict()
        for key in ("_name_or_path", "transformers_version", "dtype", "torch_dtype"):
            config.pop(key, None)
        return {**super().spec(), "init_args": {"config": config}}

    def forward(self, pixels: Tensor, want: frozenset[str] = frozenset()) -> Features:
        count, height, width = pixels.shape[0], *pixels.shape[2:]
        if height % self.stride or width % self.stride:
            raise ValueError(f"image size {(height, width)} is not a multiple of the tower's {self.stride}; round it")
        grid = (height // self.stride, width // self.stride)
        order, windows = self._windows(grid, pixels.device)
        # images one after the other, each with its blocks of patches window by window
        order = torch.cat([order + i * len(order) for i in range(count)])
        hidden = self.tower.patch_embed(self._patches(pixels))
        hidden = hidden.unflatten(0, (-1, self.side**2))[order].flatten(0, 1)
        tables = tuple(table.repeat(count, 1, 1)[order].flatten(0, 1) for table in self._rotary(grid, pixels.device))
        patches = self.side**2
        bounds = {
            True: _bounds(torch.full((count,), grid[0] * grid[1] * patches, device=pixels.device)),
            False: _bounds(windows.repeat(count) * patches),
        }
        back = order.argsort()
        wanted, found = want & NAMES, {}
        for index, block in enumerate(self.tower.blocks):
            watching = wanted and index == self.everywhere[-1]
            with watched(block) if watching else nullcontext() as seen:
                hidden = block(hidden, cu_seqlens=bounds[index in self.everywhere], position_embeddings=tables)
            if watching:
                found = self._taps(seen, wanted, back[: len(back) // count])
        merged = self.tower.merger(hidden)[back].unflatten(0, (count, -1))
        return Features(tokens=merged, grid=[grid] * count, **found)

    def _taps(self, seen: list[Projected | None], wanted: frozenset[str], back: Tensor) -> dict[str, Tensor]:
        """The wanted of a block in which each image attends to itself: mean over blocks of patches, in raster order."""
        if None in seen:
            raise unreadable()
        whole = Projected(torch.cat([s.queries for s in seen]), torch.cat([s.keys for s in seen]), seen[0].scale)
        found = read([whole], wanted, cells=whole.keys.shape[2], prefix=0, cls=False)
        return {name: value.unflatten(1, (-1, self.side**2)).mean(2)[:, back] for name, value in found.items()}

    def _patches(self, pixels: Tensor) -> Tensor:
        """One row per patch, 2 x 2 by 2 x 2; a still image is a film of equal pictures."""
        size, side = self.config.patch_size, self.side
        blocks = pixels.unflatten(3, (-1, side, size)).unflatten(2, (-1, side, size))
        rows = blocks.permute(0, 2, 5, 3, 6, 1, 4, 7).flatten(0, 4)
        film = rows[:, :, None].expand(-1, -1, self.config.temporal_patch_size, -1, -1)
        return film.flatten(1)

    def _windows(self, grid: tuple[int, int], device: torch.device) -> tuple[Tensor, Tensor]:
        """The blocks of patches of an image, window by window, and how many are in each window."""
        reach = self.config.window_size // self.stride
        row, column = (torch.arange(side, device=device) // reach for side in grid)
        window = (row[:, None] * (column[-1] + 1) + column).flatten()
        return window.argsort(stable=True), torch.bincount(window)

    def _rotary(self, grid: tuple[int, int], device: torch.device) -> tuple[Tensor, Tensor]:
        """(cos, sin) of each patch of an image, block by block: rows turn one half of a head, columns the other."""
        side = self.side
        place = torch.cartesian_prod(*(torch.arange(n * side, device=device) for n in grid))
        place = place.view(grid[0], side, grid[1], side, 2).transpose(1, 2).reshape(-1, side**2, 2)
        frequencies = self.tower.rotary_pos_emb.inv_freq.float().to(device)
        angles = (place[..., None].float() * frequencies).flatten(2).repeat(1, 1, 2)
        return angles.cos(), angles.sin()


def _bounds(lengths: Tensor) -> Tensor:
    """Where each of these stretches of a sequence begins, and where the last one ends."""
    return torch.nn.functional.pad(lengths.cumsum(0), (1, 0)).to(torch.int32)
