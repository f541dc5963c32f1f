"""Bare features of a fusion's two parts, and its parameters on no device."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from gnomon.vlm.fusion.base import Fusion
from gnomon.vlm.layout import Features


@pytest.fixture
def parts() -> Callable[..., dict[str, Features]]:
    """Pictures of 2 x 3 visual tokens over merge times as many geometry cells per side, one sample each."""

    def make(images: int = 2, *, grid: tuple[int, int] = (2, 3), merge: int = 1, vision: int = 8, geometry: int = 5):
        draw = torch.Generator().manual_seed(1)
        fine = grid[0] * merge, grid[1] * merge
        v = torch.randn(images, grid[0] * grid[1], vision, generator=draw)
        g = torch.randn(images, fine[0] * fine[1], geometry, generator=draw)
        camera = torch.randn(images, 3, geometry, generator=draw)
        where = torch.stack([torch.zeros(images), torch.arange(images), torch.zeros(images)], 1).long()
        known = Features(g, [fine] * images, camera=camera, where=where)
        return {"vision": Features(v, [grid] * images), "geometry": known}

    return make


@pytest.fixture
def ready() -> Callable[..., Fusion]:
    """A fusion set up between these widths."""

    def make(fusion: Fusion, *, vision: int = 8, geometry: int = 5) -> Fusion:
        torch.manual_seed(0)
        beside = geometry * max(1, len(fusion.layers)) * fusion.frames
        fusion.setup({"vision": vision, "geometry": beside, "encoder": vision, "lm": vision}, vision)
        return fusion.eval()

    return make


@pytest.fixture
def counted(ready: Callable[..., Fusion]) -> Callable[..., int]:
    """How many parameters it has at published widths; of the named parts alone, where these are given."""

    def count(fusion: Fusion, *names: str, without: str = "-", **widths: int) -> int:
        with torch.device("meta"):
            ready(fusion, **widths)
        found = fusion.named_parameters()
        return sum(p.numel() for name, p in found if name.startswith(names or "") and not name.startswith(without))

    return count
