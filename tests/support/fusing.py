"""The members of vlm/fusion, small, in a tiny model, on pictures that are not square.

Cells are a quarter of a visual token: 3 x 5 tokens, 6 x 10 cells.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from sequences import cells, padded, picture, scene, text
from torch import Tensor

from gnomon.data.example import GEOMETRY, Example
from gnomon.vlm.fusion import base
from gnomon.vlm.fusion.base import Aligned, Fusion
from gnomon.vlm.fusion.concat import Concat
from gnomon.vlm.fusion.concat_attention import ConcatAttention
from gnomon.vlm.fusion.cross import Cross
from gnomon.vlm.layout import Batch, Kind, Views
from gnomon.vlm.model import VLM

SIZE = 24, 40
GATED = {"class_path": "gnomon.vlm.fusion.gated.Gated", "init_args": {"merge": 2}}
SMALL = {
    "merge": 2,
    "heads": 4,
    "queries": 3,
    "tokens": 3,
    "width": 16,
    "octaves": 2,
    "layers": [0, 1],
    "fusion": GATED,
}


def members() -> list[type[Fusion]]:
    found = []
    for path in sorted(Path(base.__file__).parent.glob("*.py")):
        module = importlib.import_module(f"gnomon.vlm.fusion.{path.stem}")
        own = [v for v in vars(module).values() if isinstance(v, type) and v.__module__ == module.__name__]
        found += [cls for cls in own if issubclass(cls, Fusion) and cls not in (Fusion, Aligned)]
    return found


def takes(cls: type[Fusion]) -> set[str]:
    return set(inspect.signature(cls.__init__).parameters)


every = pytest.mark.parametrize("cls", members(), ids=lambda cls: cls.__name__)
CASES = [(cls, {}) for cls in members()]
CASES += [(cls, {"behind": not cls().behind}) for cls in members() if "behind" in takes(cls)]
CASES += [(Cross, {"places": True})]
CASES += [(cls, {"align": how}) for cls in (Concat, ConcatAttention) for how in ("interp", "pool", "nearest")]
placed = pytest.mark.parametrize(
    ("cls", "options"), CASES, ids=["-".join(map(str, [c.__name__, *o.values()])) for c, o in CASES]
)
"""On both sides of the connector, and in other alignments, where a member knows them."""


def made(cls: type[Fusion], **options) -> Fusion:
    asked = {**SMALL, **options}
    return cls(**{name: value for name, value in asked.items() if name in takes(cls)})


def opened(model: VLM) -> VLM:
    """As training leaves it: nothing is exactly nought."""
    draw = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.fusion.parameters():
            if not parameter.any():
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=draw))
    return model


def known(seed: int, shown: int, *, views: int = 2) -> Views:
    """A scene of some views, the first of them images; nothing is known of one corner of the first."""
    draw = torch.Generator().manual_seed(100 + seed)
    depth = 2 + 4 * torch.rand(views, *SIZE, generator=draw)
    depth[0, :8, :8] = 0
    lens = torch.tensor([[30.0, 0, 20], [0, 30, 12], [0, 0, 1]]).expand(views, 3, 3)
    pose = torch.eye(3, 4).repeat(views, 1, 1)
    pose[:, :, 3] = 0.3 * torch.randn(views, 3, generator=draw)
    pixels = torch.randint(0, 256, (views, 3, *SIZE), dtype=torch.uint8, generator=draw)
    return Views(pixels, [*range(shown), *[-1] * (views - shown)], lens.clone(), pose, depth)


# Per row: text, images, and of how many of these there is a scene (of how many views)
ROWS = [
    ([3, 4, 11, 12], [1], 1, 2),
    ([7, 8, 9], [2], 0, 0),
    ([5, 6, 7, 13, 14], [3, 4, 5], 2, 3),
    ([3, 4, 5, 6], [], 0, 0),
]


def batch_of(model: VLM, rows: list[tuple] = ROWS, *, depth: Callable[[Tensor], Tensor] = lambda d: d) -> Batch:
    """Right-padded rows: images, slots of the scene's tokens, and text whose second half is the answer."""
    built, pixels, views = [], [], []
    for words, images, shown, count in rows:
        slots = [slot for k in range(len(images)) for slot in cells(k, model.image.grid(*SIZE))]
        if shown and model.fusion is not None:
            seen = known(images[0], shown, views=count)
            seen.image = [len(pixels) + i if i >= 0 else -1 for i in seen.image]
            seen.depth = depth(seen.depth)
            views.append(seen)
            slots += scene(model.views.extra)
        built.append(slots + text(words, asked=len(words) // 2))
        pixels += [picture(SIZE, seed) for seed in images]
    return padded(built, pixels, views=views)


def example_of(model: VLM, words: list[int], seed: int) -> Example:
    """A picture, the scene that it is the first view of, and text whose second half is the answer."""
    slots = cells(0, model.image.grid(*SIZE)) + scene(model.views.extra) + text(words, asked=len(words) // 2)
    batch = padded([slots], [picture(SIZE, seed)], views=[known(seed, 1)])
    image = batch.layout.image[0].masked_fill(batch.layout.kind[0] == Kind.GEOMETRY, GEOMETRY)
    told = batch.ids[0], batch.labels[0], image, batch.layout.cell[0]
    return Example(str(seed), *told, batch.pixels, [0], views=batch.views[0])


def plain_of(batch: Batch) -> Batch:
    """The same sequences for a model without geometry; what stood for scenes is text to it."""
    kind = batch.layout.kind
    layout = replace(batch.layout, kind=torch.where(kind == Kind.GEOMETRY, Kind.TEXT, kind))
    return replace(batch, layout=layout, views=[])


def images_of(model: VLM, batch: Batch) -> Tensor:
    """(tokens,C) what stands in the images' slots."""
    return model.embed(batch)[0][batch.layout.is_image]


def with_geometry(batch: Batch) -> Tensor:
    """(tokens,) bool: which image tokens are of views of a scene."""
    here = {i for known in batch.views for i in known.image}
    cells = batch.layout.is_image.sum() // len(batch.pixels)
    return torch.tensor([i in here for i in range(len(batch.pixels))]).repeat_interleave(cells)
