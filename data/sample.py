"""Sample and Turn: what every data source yields, whatever the format it reads."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

IMAGE_MARK = "<image>"
"""Stands in a turn's text where an image goes; the n-th mark of a sample is its n-th image."""

# Decoded pixels (H, W, 3) uint8, a file, or encoded bytes; data/image.py turns each into pixels.
Image = np.ndarray | Path | bytes


@dataclass(frozen=True)
class Turn:
    role: Literal["system", "user", "assistant"]
    text: str


@dataclass(frozen=True)
class Geometry:
    """Pictures of one scene from V places, all H x W, and what is known about it; only the pictures are a must.

    views        V x Image        what a geometry encoder sees; image k of the sample is view k, but it may have fewer
    intrinsics   (V,3,3)          pinhole, in pixels; the centre of the first pixel is at (0.5, 0.5)
    extrinsics   (V,3,4)          [R|t], camera-from-world, x right, y down, z forward: see data/cameras.py
    depth        (V,H,W) float    along z; 0 where there is nothing
    normals      (V,H,W,3) float  unit, world frame, towards the camera; 0 where there is nothing
    points       (V,H,W,3) float  world frame; 0 where there is nothing
    instances    (V,H,W) uint8    number of the object, the same in all views; 0 for background
    """

    views: tuple[Image, ...]
    intrinsics: np.ndarray | None = None
    extrinsics: np.ndarray | None = None
    depth: np.ndarray | None = None
    normals: np.ndarray | None = None
    points: np.ndarray | None = None
    instances: np.ndarray | None = None


@dataclass(frozen=True)
class Sample:
    """One conversation with its images; `answer` and `meta` (task, level, ...) are for whoever scores it."""

    id: str
    turns: tuple[Turn, ...]
    images: tuple[Image, ...] = ()
    answer: Any = None
    meta: dict[str, Any] = field(default_factory=dict)
    geometry: Geometry | None = None

    @property
    def marks(self) -> int:
        return sum(turn.text.count(IMAGE_MARK) for turn in self.turns)


class Source:
    """Random access to samples: item i depends on i and the constructor's arguments alone."""

    def __len__(self) -> int:
        raise NotImplementedError

    def __getitem__(self, index: int) -> Sample:
        raise NotImplementedError

    def settings(self) -> dict[str, Any]:
        """All that decides about the samples, in plain types; empty where a source cannot say."""
        return {}

    def __iter__(self) -> Iterator[Sample]:
        return (self[i] for i in range(len(self)))
