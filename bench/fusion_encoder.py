"""The encoder of the conditions with predicted geometry, and how well it knows scenes that it was not taught."""

from __future__ import annotations

import json

from fusion_stock import SIZE, VIEWS

from gnomon.data.sources.scenes.source import Scenes
from gnomon.eval.geometry import measure
from gnomon.vlm.geometry.base import GeometryEncoder
from gnomon.vlm.layout import ViewsSpec
from gnomon.vlm.part import build
from gnomon.vlm.shipped import resolve


def opened(folder: str) -> GeometryEncoder:
    """From a directory that `gnomon fit-geometry` wrote."""
    try:
        spec = json.loads((resolve(folder) / "encoder.json").read_text())
        spec["init_args"] |= {"weights": folder, "frozen": True}
        return build(spec, GeometryEncoder)
    except (OSError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"{folder} is no encoder of `gnomon fit-geometry` ({error}); give its directory") from error


def measured(encoder: GeometryEncoder, *, tasks: list[str], seed: int, scenes: int = 200) -> dict[str, float]:
    """On scenes of the test split: cameras and depth, without the points, which no condition is about."""
    source = Scenes(count=scenes, split="test", seed=seed, tasks=tasks, views=VIEWS, size=SIZE)
    found = measure.measured(encoder, source, ViewsSpec(encoder.multiple))
    return {name: value for name, value in found.items() if not name.endswith("of points")}
