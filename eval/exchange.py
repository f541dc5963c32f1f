"""Geometry of another scene, or none at all: does a model use what its geometry encoder tells it?

One that does must lose from its own scene's geometry to another's. Which other scene an item gets follows from its id
alone, so answers do not depend on batches.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from typing import Literal

import torch

from gnomon.data.example import Example
from gnomon.data.processor import Processor
from gnomon.eval.benchmark import Benchmark
from gnomon.vlm.layout import Views
from gnomon.vlm.model import VLM

Mode = Literal["own", "other", "none"]
MODES: tuple[Mode, ...] = ("other", "none")

_DONORS, _LOOKED_AT = 16, 256


def check(model: VLM, mode: Mode) -> None:
    """A ValueError for what this model's geometry cannot be exchanged with."""
    if mode not in MODES:
        raise ValueError(f"geometry {mode!r} is unknown; use {' or '.join(MODES)}")
    if model.fusion is None:
        raise ValueError(f"geometry {mode!r}: the model has no geometry encoder; leave --geometry out")
    if mode == "none" and model.fusion.extra:
        raise ValueError(
            f"geometry 'none': {type(model.fusion).__name__} adds {model.fusion.extra} tokens for every scene, so "
            "another prompt would be compared; use other"
        )


def usual(benchmarks: Iterable[Benchmark], model: VLM, processor: Processor) -> list[Mode]:
    """What is measured beside the model as it is when nothing is said: other scenes' geometry, where there are any."""
    if model.fusion is None:
        return []
    return ["other"] if len(list(islice(_scenes(benchmarks, processor), 2))) == 2 else []


def donors(benchmarks: Iterable[Benchmark], processor: Processor) -> list[Views]:
    """Views of the first scenes of the benchmarks, each another one, to be exchanged with."""
    found = list(islice(_scenes(benchmarks, processor), _DONORS))
    if len(found) < 2:
        raise ValueError(f"the benchmarks have {len(found)} scenes; exchanging their geometry takes at least 2")
    return found


def _scenes(benchmarks: Iterable[Benchmark], processor: Processor) -> Iterator[Views]:
    found: list[Views] = []
    for benchmark in benchmarks:
        for sample in islice(benchmark.examples(_LOOKED_AT), _LOOKED_AT):
            if sample.geometry is None:
                continue
            views = processor.example(benchmark.prompt(sample), train=False).views
            if views is not None and not any(_same(views, other) for other in found):
                found.append(views)
                yield views


def exchanged(example: Example, mode: Mode, others: Sequence[Views]) -> Example:
    """The example with that geometry; one without geometry stays as it is."""
    own = example.views
    if own is None or mode == "own":
        return example
    if mode == "none":
        return replace(example, views=None)
    first = zlib.crc32(example.sample.encode())
    turns = [others[(first + k) % len(others)] for k in range(len(others))]
    # of its size if there is one, so that they fall onto the picture's cells as its own do
    another = [views for views in turns if not _same(views, own)]
    other = min(another, key=lambda views: views.pixels.shape[2:] != own.pixels.shape[2:])
    shown = [image for image in own.image if image >= 0][: len(other.image)]
    return replace(example, views=replace(other, image=[*shown, *[-1] * (len(other.image) - len(shown))]))


def _same(a: Views, b: Views) -> bool:
    return a.pixels.shape == b.pixels.shape and torch.equal(a.pixels, b.pixels)
