"""GeoSR's cross attention: its size, the places on queries and keys, and its two sums."""

from __future__ import annotations

import math

import torch
from torch.nn import functional as F

from gnomon.vlm.fusion.base import sines
from gnomon.vlm.fusion.geosr_cross import GeoSRCross


def test_size(counted):
    """Attention 4 D^2 + 4 D, feed-forward 8 D^2 + 5 D, four norms 8 D."""
    found = counted(GeoSRCross(), without="merger", vision=3584, geometry=2048)
    assert found == 12 * 3584**2 + 17 * 3584


def test_places_by_hand():
    found = sines(torch.tensor([[0.0, 0.0], [2.0, 3.0]]), 8)
    assert found[0].tolist() == [0, 0, 1, 1, 0, 0, 1, 1]
    row, column = [[math.sin(x), math.sin(x / 100), math.cos(x), math.cos(x / 100)] for x in (2, 3)]
    torch.testing.assert_close(found[1], torch.tensor(row + column))


def test_rule(parts, ready):
    fusion, given = ready(GeoSRCross(heads=2)), parts()
    v, g = given["vision"].tokens, fusion.merger(given["geometry"].tokens)
    cells = torch.tensor([[r, c] for r in range(2) for c in range(3)]).float()
    place = sines(cells, 8)
    said = fusion.attention(F.layer_norm(v, (8,)) + place, F.layer_norm(g, (8,)) + place, F.layer_norm(g, (8,)))
    x = v + said
    _, first, _, second = fusion.feed
    expected = x + second(F.gelu(first(F.layer_norm(x, (8,)))))
    torch.testing.assert_close(fusion(given).tokens, expected, atol=1e-5, rtol=1e-4)
