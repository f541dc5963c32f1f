"""Models that the contracts are tested in."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from fusing import SIZE

from gnomon.vlm.encoders.timm import Timm
from gnomon.vlm.fusion.base import Fusion
from gnomon.vlm.geometry.known import Known
from gnomon.vlm.model import VLM


@pytest.fixture
def fused(tiny: Callable[..., VLM]) -> Callable[..., VLM]:
    def make(fusion: Fusion | None = None, *, patch: int = 4, **options) -> VLM:
        vit = {"img_size": list(SIZE), "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2}
        geometry = None if fusion is None else Known(patch=patch, octaves=2)
        torch.manual_seed(0)
        given = {"image_size": SIZE, "geometry": geometry, "fusion": fusion, **options}
        return tiny(encoder=Timm("vit_tiny_patch16_224", args=vit), **given)

    return make
