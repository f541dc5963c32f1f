from __future__ import annotations

import math

import torch

from gnomon.vlm.multiview import places


def test_a_token_is_waves_of_its_mean_point_weighted():
    points = torch.tensor([[1.0, 0, 4], [3, 0, 4], [50, 50, 50], [5, 0, 8]]).view(1, 1, 2, 2, 3)
    weight = torch.tensor([1.0, 1, 0, 2]).view(1, 1, 2, 2)
    (token,) = places.tokens(points, weight, grid=(1, 1), octaves=2, extent=8.0)[0, 0]
    mean = ((1 + 3 + 2 * 5) / 4, 0.0, (4 + 4 + 2 * 8) / 4)
    angles = [at * math.pi / 8 * 2**k for at in mean for k in (0, 1)]
    expected = [math.sin(angle) for angle in angles] + [math.cos(angle) for angle in angles] + [1.0]
    torch.testing.assert_close(token, torch.tensor(expected))


def test_where_nothing_is_known_a_token_is_zero():
    found = places.tokens(torch.ones(1, 2, 4, 4, 3), torch.zeros(1, 2, 4, 4), grid=(2, 2), octaves=3, extent=1.0)
    assert found.shape == (1, 2, 4, 19) and not found.any()


def test_points_are_in_the_view_that_is_asked_for():
    # the second camera stands 2 to the right and looks to the left, along -x
    second = torch.tensor([[0.0, 0, 1, 0], [0, 1, 0, 0], [-1, 0, 0, 2]])
    extrinsics = torch.stack([torch.eye(3, 4), second])[None]
    lens = torch.tensor([[1.0, 0, 0.5], [0, 1, 0.5], [0, 0, 1]]).expand(1, 2, 3, 3)
    depth = torch.tensor([3.0, 5.0]).view(1, 2, 1, 1)
    first, other = (places.in_view(extrinsics, lens, depth, torch.tensor([k]))[0, :, 0, 0] for k in (0, 1))
    # along the axes of both: three ahead of the first; five to the left of (2, 0, 0)
    torch.testing.assert_close(first, torch.tensor([[0.0, 0, 3], [-3, 0, 0]]))
    torch.testing.assert_close(other, torch.tensor([[3.0, 0, 2], [0, 0, 5]]))
