from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from gnomon.vlm.multiview import sweep

LENS = torch.tensor([[8.0, 0, 8], [0, 8, 8], [0, 0, 1]])


def cameras(*centres: tuple[float, float, float]) -> torch.Tensor:
    """Looking along z."""
    extrinsics = torch.eye(3, 4).repeat(len(centres), 1, 1)
    extrinsics[:, :, 3] = -torch.tensor(centres)
    return extrinsics[None]


def test_the_nearest_other_cameras_that_are_there():
    extrinsics = cameras((0, 0, 0), (1, 0, 0), (3, 0, 0), (0, 0.5, 0))
    valid = torch.tensor([[True, True, True, False]])
    which, there, unit = sweep.neighbours(extrinsics, valid, 2)
    assert which[0, :3].tolist() == [[1, 2], [0, 2], [1, 0]]
    assert there[0].tolist() == [[True, True]] * 3 + [[False, False]]
    torch.testing.assert_close(unit[0], torch.tensor([2.0, 1.5, 2.5, 1.0]))
    which, there, unit = sweep.neighbours(extrinsics[:, :1], valid[:, :1], 2)
    assert which.shape == there.shape == (1, 1, 0) and unit.tolist() == [[1.0]]


@pytest.mark.parametrize("views", [3, 40])
def test_cameras_that_only_turn_have_no_distance(views):
    """Their centres are equal up to rounding; of one elsewhere, all know the distance."""
    torch.manual_seed(0)
    turn = torch.linalg.qr(torch.randn(views, 3, 3))[0]
    centre = torch.tensor([3.1, -2.7, 5.3]).repeat(views, 1)
    for moved in (0.0, 0.5):
        centre[-1, 0] = 3.1 + moved
        extrinsics = torch.cat([turn, -turn @ centre[..., None]], -1)[None]
        _, there, unit = sweep.neighbours(extrinsics, torch.ones(1, views, dtype=torch.bool), 2)
        counts = [1] * (views - 1) + [2] if moved else [0] * views
        assert there[0].sum(-1).tolist() == counts
        torch.testing.assert_close(unit[0], torch.full((views,), moved or 1.0), atol=1e-5, rtol=0)


def test_what_is_read_of_another_view_lies_where_its_camera_sees_the_point():
    """Of features that are their own column and row, by the projection of single points."""
    turn = torch.linalg.matrix_exp(torch.tensor([[0.0, 0.1, -0.2], [-0.1, 0, 0.05], [0.2, -0.05, 0]]))
    extrinsics = torch.stack([torch.eye(3, 4), torch.cat([turn, torch.tensor([[-0.5], [0.2], [0.1]])], 1)])[None]
    row, column = torch.meshgrid(torch.arange(8) + 0.5, torch.arange(8) + 0.5, indexing="ij")
    other = torch.stack([column, row])
    features = torch.stack([torch.ones_like(other), other])[None]
    which, there, _ = sweep.neighbours(extrinsics, torch.ones(1, 2, dtype=torch.bool), 1)
    inverse = torch.tensor([0.5, 0.25, 0.1]).expand(1, 2, 3)
    found = sweep.agreement(
        features, extrinsics, LENS.expand(1, 2, 3, 3), inverse, size=(16, 16), groups=2, which=which, there=there
    )[0, 0]
    checked = 0
    for plane, far in enumerate((2.0, 4.0, 10.0)):
        for y in range(8):
            for x in range(8):
                # a cell is two pixels wide
                point = far * torch.linalg.inv(LENS) @ torch.tensor([2 * x + 1.0, 2 * y + 1.0, 1.0])
                seen = LENS @ (turn @ point + extrinsics[0, 1, :, 3])
                place = seen[:2] / seen[2] / 2
                if bool(((place > 0.5) & (place < 7.5)).all()):
                    torch.testing.assert_close(found[:, plane, y, x], place, atol=1e-4, rtol=1e-4)
                    checked += 1
                elif not bool(((place >= 0) & (place <= 8)).all()):
                    assert not found[:, plane, y, x].any()
    assert checked > 100


def test_views_of_a_plane_agree_most_at_its_depth():
    torch.manual_seed(0)
    wide = F.interpolate(torch.randn(1, 8, 16, 30), (32, 60), mode="bilinear")
    # a wall at depth 4: half a unit to the right is one cell to the left
    views = torch.stack([wide[0, ..., 10 + shift : 42 + shift] for shift in (0, 1, -2)])[None]
    extrinsics = cameras((0, 0, 0), (0.5, 0, 0), (-1, 0, 0))
    lens = torch.tensor([[16.0, 0, 32], [0, 16, 32], [0, 0, 1]]).expand(1, 3, 3, 3)
    which, there, _ = sweep.neighbours(extrinsics, torch.ones(1, 3, dtype=torch.bool), 2)
    inverse = torch.tensor([0.125, 0.25, 0.375, 0.5]).expand(1, 3, 4)
    features = F.normalize(views, dim=2)
    found = sweep.agreement(features, extrinsics, lens, inverse, size=(64, 64), groups=4, which=which, there=there).sum(
        2
    )
    inner = found[..., 4:-4, 4:-4]
    torch.testing.assert_close(inner[:, :, 1], torch.ones_like(inner[:, :, 1]), atol=1e-4, rtol=1e-4)
    assert float((inner.argmax(2) == 1).float().mean()) > 0.99
