from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from gnomon.vlm.geometry.base import GeometryInput
from gnomon.vlm.geometry.known import Known


def scene() -> GeometryInput:
    """Two views of 2x4 pixels: one at the origin, one that stands one to the right of it and looks the same way."""
    lens = torch.tensor([[2.0, 0, 2], [0, 2, 1], [0, 0, 1]]).expand(1, 2, 3, 3)
    extrinsics = torch.eye(3, 4).repeat(1, 2, 1, 1)
    extrinsics[:, 1, 0, 3] = -1
    depth = torch.full((1, 2, 2, 4), 4.0)
    return GeometryInput(torch.zeros(1, 2, 3, 2, 4), torch.ones(1, 2, dtype=torch.bool), lens, extrinsics, depth)


def test_points_by_hand():
    points = Known(patch=2).measure(scene(), heads=["points"]).points
    # pixel (1.5, 0.5): ((1.5 - 2) / 2, (0.5 - 1) / 2, 1) * 4
    assert points[0, 0, 0, 1].tolist() == [-1, -1, 4]
    assert points[0, 1, 0, 1].tolist() == [0, -1, 4]


def test_a_token_is_waves_of_its_mean_point():
    token = Known(patch=2, octaves=2, extent=8.0).measure(scene()).tokens[0, 1, 0]
    # pixels 0 and 1 of both rows of the second view: x of (-1.5 - 0.5) / 2 + 1, y 0, z 4
    angles = [at * math.pi / 8 * 2**k for at in (-1.0, 0.0, 4.0) for k in (0, 1)]
    expected = [math.sin(angle) for angle in angles] + [math.cos(angle) for angle in angles] + [1.0]
    torch.testing.assert_close(token, torch.tensor(expected), atol=1e-5, rtol=1e-5)


def test_pixels_without_depth_count_for_nothing():
    given = scene()
    depth = given.depth.clone()
    depth[0, 0, :, 1:] = torch.tensor([0.0, torch.nan, torch.inf])
    out = Known(patch=2).measure(replace(given, depth=depth), heads=["points"])
    assert out.tokens[0, 0, :, -1].tolist() == [0.5, 0]
    assert not out.tokens[0, 0, 1].any() and out.tokens.isfinite().all()
    assert out.points_confidence[0, 0].sum() == 2


def test_what_is_not_known_is_asked_for():
    with pytest.raises(ValueError, match="Known needs extrinsics, depth of every view"):
        Known(patch=2).measure(replace(scene(), extrinsics=None, depth=None))
    with pytest.raises(ValueError, match="octaves 0"):
        Known(octaves=0)
