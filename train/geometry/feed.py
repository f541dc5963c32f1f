"""Scenes to batches for a geometry encoder: step s has the same scenes in it whoever asks, so a run can go on anywhere.

Shapes: B scenes, S views, H,W pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from gnomon.data.errors import BadSample
from gnomon.data.order import Order
from gnomon.data.sample import Sample, Source
from gnomon.data.stream import deaf
from gnomon.data.views import prepare
from gnomon.vlm.geometry.base import GeometryInput
from gnomon.vlm.layout import Views, ViewsSpec

_MUST = "intrinsics", "extrinsics", "depth"


@dataclass(frozen=True)
class Feed(Dataset):
    """Item s is the batch of step s, on the CPU.

    recolour  trade the colour channels of a scene, and shift brightness and contrast of each view: they say nothing
    """

    source: Source
    spec: ViewsSpec
    order: Order
    steps: int
    recolour: bool = False

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, step: int) -> GeometryInput:
        scenes = [scene(self.source[i], self.spec) for i in self.order.ids(step)]
        sizes = {tuple(s.pixels.shape[2:]) for s in scenes}
        if len(sizes) > 1:
            raise BadSample(f"scenes of one batch have views of sizes {sorted(sizes)}; set `size` to bring them to one")
        batch = GeometryInput.stack(scenes, "cpu")
        if self.recolour:
            seed = hash((self.order.seed, step, self.order.rank))
            batch.images = recoloured(batch.images, torch.Generator().manual_seed(seed))
        return batch

    def loader(self, *, start: int, workers: int) -> DataLoader:
        return DataLoader(
            self,
            batch_size=None,
            sampler=range(start, self.steps),
            num_workers=workers,
            prefetch_factor=4 if workers else None,
            persistent_workers=workers > 0,
            worker_init_fn=deaf,
        )


def scene(sample: Sample, spec: ViewsSpec) -> Views:
    """The views of a sample that says all that an encoder is taught."""
    known = sample.geometry
    if lacking := [name for name in _MUST if known is None or getattr(known, name) is None]:
        raise BadSample(f"sample {sample.id} lacks {', '.join(lacking)}; an encoder learns from depth and cameras")
    return prepare(known, spec, images=(), name=f"sample {sample.id}")


def recoloured(images: Tensor, generator: torch.Generator) -> Tensor:
    """(B,S,3,H,W) in 0..1: channels traded scene by scene; brightness and contrast changed view by view."""
    views = images.shape[:2]
    trade = torch.rand(views[0], 3, generator=generator).argsort(1)
    images = images.gather(2, trade[:, None, :, None, None].expand_as(images))
    contrast, brightness = torch.rand(2, *views, 1, 1, 1, generator=generator)
    return ((images - 0.5) * (0.8 + 0.4 * contrast) + 0.4 + 0.2 * brightness).clamp(0, 1)


def valid_pixels(batch: GeometryInput) -> Tensor:
    """(B,S,H,W) bool"""
    return (batch.depth > 0) & batch.valid[..., None, None]
