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
class Sample:
    """One conversation with its images; `answer` and `meta` (task, level, ...) are for whoever scores it."""

    id: str
    turns: tuple[Turn, ...]
    images: tuple[Image, ...] = ()
    answer: Any = None
    meta: dict[str, Any] = field(default_factory=dict)

    @property
    def marks(self) -> int:
        return sum(turn.text.count(IMAGE_MARK) for turn in self.turns)


class Source:
    """Random access to samples: item i depends on i and the constructor's arguments alone."""

    def __len__(self) -> int:
        raise NotImplementedError

    def __getitem__(self, index: int) -> Sample:
        raise NotImplementedError

    def __iter__(self) -> Iterator[Sample]:
        return (self[i] for i in range(len(self)))
