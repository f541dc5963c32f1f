"""How well TinyGeo knows scenes that it was not taught."""

from __future__ import annotations

from fusion_stock import SIZE, VIEWS

from gnomon.data.sources.scenes.source import Scenes
from gnomon.eval.geometry import measure
from gnomon.vlm.geometry.tinygeo import TinyGeo
from gnomon.vlm.layout import ViewsSpec


def measured(encoder: TinyGeo, *, tasks: list[str], seed: int, scenes: int = 200) -> dict[str, float]:
    """On scenes of the test split: cameras and depth, without the points, which no condition is about."""
    source = Scenes(count=scenes, split="test", seed=seed, tasks=tasks, views=VIEWS, size=SIZE)
    found = measure.measured(encoder, source, ViewsSpec(encoder.multiple))
    return {name: value for name, value in found.items() if not name.endswith("of points")}
