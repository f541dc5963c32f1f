"""Sines and cosines of points: by hand, padded with zeros, and nothing where no point is."""

from __future__ import annotations

import math

import torch

from gnomon.vlm.fusion.sinusoidal_coordinates import SinusoidalCoordinates, encode


def test_waves_by_hand():
    """Width 14: 4 channels per axis, 2 of padding."""
    found = encode(torch.tensor([0.5, -2.0, 3.0]), 14)
    expected = [f(x / s) for x in (0.5, -2.0, 3.0) for s in (1, 100) for f in (math.sin, math.cos)]
    torch.testing.assert_close(found, torch.tensor([*expected, 0, 0]))


def test_added_where_points_are(parts, ready):
    fusion, given = ready(SinusoidalCoordinates(voxel=0.1)), parts(1)
    xyz = torch.arange(18.0).view(1, 6, 3) / 10
    given["geometry"].xyz, given["geometry"].confidence = xyz, torch.tensor([[1.0, 1, 1, 0, 1, 1]])
    added = fusion(given).tokens - given["vision"].tokens
    torch.testing.assert_close(added[0, 4], encode(xyz[0, 4] * 10, 8), atol=1e-5, rtol=1e-4)
    assert not added[0, 3].any() and not list(fusion.parameters())
