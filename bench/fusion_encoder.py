"""How well TinyGeo knows scenes that it was not taught."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from fusion_stock import SIZE, VIEWS

from gnomon.data.sources.scenes.source import Scenes
from gnomon.data.views import prepare
from gnomon.eval.geometry.depth import depth_errors
from gnomon.eval.geometry.mean import Mean
from gnomon.eval.geometry.pose import PairErrors, pair_errors
from gnomon.vlm.geometry.base import GeometryInput
from gnomon.vlm.geometry.tinygeo import TinyGeo
from gnomon.vlm.layout import ViewsSpec


def measured(encoder: TinyGeo, *, tasks: list[str], seed: int, scenes: int = 200) -> dict[str, float]:
    """On scenes of the test split: depth after its median is made right, in all views and from the first one alone."""
    source = Scenes(count=scenes, split="test", seed=seed, tasks=tasks, views=VIEWS, size=SIZE)
    depth, single, flat, pairs = Mean(), Mean(), Mean(), []
    for sample in source:
        known = sample.geometry
        views = prepare(known, ViewsSpec(encoder.multiple), images=[0], name=sample.id)
        given = GeometryInput.stack([views], "cpu")
        out = encoder.measure(given, heads=("depth", "camera"))
        alone = encoder.measure(replace(given, images=given.images[:, :1], valid=given.valid[:, :1]), heads=("depth",))
        truth = known.depth.astype(np.float64)
        for mean, guess, true in (
            (depth, out.depth[0].numpy(), truth),
            (single, alone.depth[0].numpy(), truth[:1]),
            (flat, np.ones_like(truth), truth),
        ):
            factor = np.median(true[true > 0]) / np.median(guess[true > 0])
            mean.add(depth_errors(factor * guess, true))
        pairs.append(pair_errors(out.extrinsics[0].numpy(), known.extrinsics))
    found = {"scenes": scenes, "AUC@30": PairErrors.join(pairs).auc(30)}
    for name, mean in (("", depth), (" of one view", single), (" of the median depth", flat)):
        found |= {f"AbsRel{name}": mean.result()["abs_rel"], f"delta1{name}": mean.result()["delta_1"]}
    return found
