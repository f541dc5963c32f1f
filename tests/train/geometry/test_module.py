"""What encoders are taught: targets in the unit that they predict in."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from gnomon.data.order import Order
from gnomon.data.sources.scenes.source import Scenes
from gnomon.train.geometry.feed import Feed
from gnomon.train.geometry.module import losses
from gnomon.vlm.geometry.depth_anything_3 import DepthAnything3
from gnomon.vlm.layout import ViewsSpec


def test_an_encoder_of_metres_stays_one():
    """Depth Anything 3's metric model has no scale to learn: the truth costs nothing in metres, and as a share does."""
    batch = Feed(Scenes(count=2, size=(56, 56), views=2), ViewsSpec(14), Order(2, batch=2), 1)[0]
    assert float(batch.depth.max()) > 3

    class Told(DepthAnything3):
        def forward(self, scenes, *, layers=(), heads=()):
            out = super().forward(scenes, layers=layers, heads=heads)
            return replace(out, depth=factor * batch.depth, depth_confidence=torch.ones_like(batch.depth))

    sizes = {"width": 32, "attention_heads": 2, "depth": 4, "taps": (0, 1, 2, 3), "features": 8, "trained_at": 56}
    encoder = Told("metric_large", frozen=False, args={**sizes, "channels": (8, 8, 8, 8)})
    for factor in (1.0, 1.1):
        terms = losses(encoder, batch)
        there = batch.depth > 0
        # the regression with a confidence of 1 is the plain error once more
        assert float(terms["depth"]) == pytest.approx(2 * (factor - 1) * float(batch.depth[there].mean()), abs=1e-4)
        assert terms.keys() == {"depth"}
