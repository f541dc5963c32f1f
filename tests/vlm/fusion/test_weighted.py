"""The weighted mean: two parameters, and a mean of equal weights at first."""

from __future__ import annotations

import torch

from gnomon.vlm.fusion.weighted import Weighted


def test_two_parameters(counted):
    assert counted(Weighted(), without="merger", vision=3584, geometry=2048) == 2


def test_weights(parts, ready):
    fusion, given = ready(Weighted()), parts()
    v, g = given["vision"].tokens, fusion.merger(given["geometry"].tokens)
    torch.testing.assert_close(fusion(given).tokens, (v + g) / 2)
    with torch.no_grad():
        fusion.vision.fill_(3)
        fusion.geometry.fill_(1)
    torch.testing.assert_close(fusion(given).tokens, 0.75 * v + 0.25 * g)
    assert fusion.openness(given).unique().tolist() == [0.25]
