"""Prompts made of random numbers: as many visual tokens as wanted, whatever the encoder would give."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from gnomon.vlm.layout import IGNORE, Batch, Features, Kind, TokenLayout
from gnomon.vlm.model import VLM, Seen

CROP = 576
"""Tokens of one crop of 24 x 24; 2,880 visual tokens are five of them."""


def prompt(
    model: VLM, *, rows: int, visual: int, text: int, needs: frozenset[str], seed: int = 0
) -> tuple[Batch, list[Seen]]:
    """A batch of equal rows of text, images and text, and random features in place of the encoder's output.

    needs: what reducers ask the encoder for besides.
    """
    draw = torch.Generator().manual_seed(seed)
    crops = visual // CROP if visual % CROP == 0 else 1
    height, width = _grid(visual // crops)
    before = min(8, text // 2)
    line = torch.full((text + visual,), Kind.TEXT)
    line[before : before + visual] = Kind.IMAGE
    image, cell = torch.full_like(line, -1), torch.full((len(line), 2), -1)
    image[before : before + visual] = torch.arange(crops).repeat_interleave(height * width)
    cell[before : before + visual] = _cells(height, width).repeat(crops, 1)
    device = model.mean.device
    layout = TokenLayout(
        kind=line.repeat(rows, 1),
        image=image.repeat(rows, 1),
        cell=cell.repeat(rows, 1, 1),
        position=torch.arange(len(line)).repeat(rows, 1),
    )
    ids = torch.randint(0, model.lm.model.config.vocab_size, layout.shape, generator=draw)
    # pixels are only counted: the encoder's output is there already
    pixels = [torch.zeros(3, 1, 1, dtype=torch.uint8)] * (rows * crops)
    batch = Batch(ids, torch.full_like(ids, IGNORE), layout, pixels, samples=[f"row{i}" for i in range(rows)])
    seen = _seen(model, rows * crops, (height, width), needs, draw)
    return batch.to(device), [seen]


def _seen(model: VLM, images: int, grid: tuple[int, int], needs: frozenset[str], draw: torch.Generator) -> Seen:
    merge, weight = model.connector.merge, next(model.lm.parameters())
    height, width = grid[0] * merge, grid[1] * merge
    count, wide = height * width, model.encoder.width

    def normal(*shape: int) -> Tensor:
        return torch.randn(images, *shape, generator=draw)

    made = {
        "saliency": lambda: normal(count).softmax(1),
        "keys": lambda: normal(count, 64),
        "wide_saliency": lambda: normal(count).softmax(1),
        "wide_keys": lambda: normal(count, wide),
        "cls": lambda: normal(wide),
        "xyz": lambda: normal(count, 3),
    }
    taps = {name: made[name]() for name in sorted(needs & made.keys())}
    tokens = normal(count, wide).to(weight.dtype)
    features = Features(tokens=tokens, grid=[(height, width)] * images, **taps)
    side = model.encoder.stride if "pixels" in needs else 0
    pixels = torch.rand(images, 3, height * side, width * side, generator=draw)
    return Seen(list(range(images)), features.to(weight.device), pixels.to(weight.device))


def _grid(count: int) -> tuple[int, int]:
    """The rows and columns closest to a square."""
    rows = next(n for n in range(math.isqrt(count), 0, -1) if count % n == 0)
    return rows, count // rows


def _cells(height: int, width: int) -> Tensor:
    return torch.cartesian_prod(torch.arange(height), torch.arange(width))
