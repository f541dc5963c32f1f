"""Gaussian spatial tokens: where Gaussians stand, who is pooled, and the depth that they render."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from gnomon.vlm.fusion import gst_vla
from gnomon.vlm.fusion.base import Scene
from gnomon.vlm.fusion.gst_vla import GSTVLA, patches, render, to_first
from gnomon.vlm.geometry.base import GeometryOutput
from gnomon.vlm.multiview.losses.dense import scale_invariant_log


@pytest.fixture
def fusion(ready):
    return ready(GSTVLA(tokens=3, width=16, heads=2, octaves=2))


def scene(views: int = 2) -> Scene:
    """Two views of 8 x 12 pixels on 2 x 3 cells, depth constant in each cell."""
    draw = torch.Generator().manual_seed(4)
    depth = 1 + torch.rand(1, views, 2, 3, generator=draw)
    pixels = depth.repeat_interleave(4, 2).repeat_interleave(4, 3)
    lens = torch.tensor([[10.0, 0, 6], [0, 8, 4], [0, 0, 1]]).expand(1, views, 3, 3)
    turn = torch.linalg.qr(torch.randn(1, views, 3, 3, generator=draw))[0]
    turn = turn * torch.linalg.det(turn)[..., None, None]
    pose = torch.cat([turn, torch.randn(1, views, 3, 1, generator=draw)], -1)
    valid = torch.ones(1, views).bool()
    output = GeometryOutput(torch.zeros(1, views, 6, 5), (2, 3), valid, depth=pixels, extrinsics=pose, intrinsics=lens)
    vision = torch.randn(1, views, 6, 8, generator=draw)
    return Scene(output, output.tokens, torch.zeros(1, 1, 8), valid[:, :1], vision, valid)


def centres(given: Scene, view: int) -> torch.Tensor:
    """(6,3) the cells' centres seen back through the lens of their own camera."""
    lens, depth = given.output.intrinsics[0, view], given.output.depth[0, view]
    pixels = torch.tensor([[4 * c + 2.0, 4 * r + 2.0, 1] for r in range(2) for c in range(3)])
    return depth[2::4, 2::4].flatten()[:, None] * (pixels @ torch.linalg.inv(lens).T)


def test_gaussians_begin_at_the_back_projected_points(fusion):
    given = scene()
    depth, rays, there = patches(given)
    assert bool(there.all()) and not fusion.offset.weight.any()
    assert [p.item() for p in fusion.affine.parameters()] == [1, 0]
    mu = depth[..., None] * rays
    for view in range(2):
        torch.testing.assert_close(mu[0, view], centres(given, view), atol=1e-6, rtol=1e-6)


def test_all_views_stand_in_the_first_ones_frame():
    given = scene()
    points, pose = torch.stack([centres(given, 0), centres(given, 1)])[None], given.output.extrinsics[0]
    found = to_first(points, given)
    torch.testing.assert_close(found[:, 0], points[:, 0], atol=1e-5, rtol=1e-5)
    world = (points[0, 1] - pose[1, :, 3]) @ pose[1, :, :3]
    torch.testing.assert_close(found[0, 1], world @ pose[0, :, :3].T + pose[0, :, 3], atol=1e-5, rtol=1e-5)


def test_cameras_that_move_as_one_change_nothing(fusion):
    """The same rig elsewhere in the world: the same places seen from its first camera, the same tokens."""
    given, moved = scene(), scene()
    turn = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(9)))[0]
    turn, pose = turn * torch.linalg.det(turn), moved.output.extrinsics
    shift = pose[..., 3] + torch.einsum("bsij,j->bsi", pose[..., :3], torch.tensor([1.0, -2, 3]))
    moved.output.extrinsics = torch.cat([pose[..., :3] @ turn, shift[..., None]], -1)
    torch.testing.assert_close(fusion.scene(moved).tokens, fusion.scene(given).tokens, atol=1e-5, rtol=1e-4)


def test_one_camera_that_moves_moves_its_points_rigidly():
    given, moved = scene(), scene()
    pose = moved.output.extrinsics
    # the second camera's centre goes by this much in the world
    step = torch.tensor([0.5, 0.25, -1.0])
    pose[0, 1, :, 3] -= pose[0, 1, :, :3] @ step
    points = torch.stack([centres(given, 0), centres(given, 1)])[None]
    gone = to_first(points, moved) - to_first(points, given)
    torch.testing.assert_close(gone[0, 1], (pose[0, 0, :, :3] @ step).expand(6, 3), atol=1e-5, rtol=1e-4)


def test_patches_have_no_order(fusion, monkeypatch):
    given = scene()
    before = fusion.scene(given).tokens
    order, real = torch.tensor([3, 0, 5, 1, 4, 2]), gst_vla.patches
    monkeypatch.setattr(gst_vla, "patches", lambda scene: tuple(x[:, :, order] for x in real(scene)))
    given.vision = given.vision[:, :, order]
    torch.testing.assert_close(fusion.scene(given).tokens, before, atol=1e-5, rtol=1e-4)


def test_unknown_depth_and_views_that_are_no_images_are_not_looked_at(fusion):
    given, other = scene(), scene()
    for each in (given, other):
        each.output.depth[0, 0, :4, :4] = 0
        each.shown = torch.tensor([[True, False]])
    other.vision[0, 0, 0] += 5
    other.vision[0, 1] += 5
    other.output.depth[0, 1] *= 2
    assert torch.equal(fusion.scene(given).tokens, fusion.scene(other).tokens)
    fusion.train()
    lost = fusion.scene(given).losses["depth"]
    assert lost > 0 and torch.equal(lost, fusion.scene(other).losses["depth"])
    other.vision[0, 0, 1] += 5
    assert not torch.allclose(fusion.scene(given).tokens, fusion.scene(other).tokens)


def test_what_is_not_looked_at_may_be_no_number(fusion):
    given, other = scene(), scene()
    for each in (given, other):
        each.shown = torch.tensor([[True, False]])
    other.vision[0, 1] = torch.nan
    assert torch.equal(fusion.scene(given).tokens, fusion.scene(other).tokens)


def test_a_transparent_gaussian_still_takes_its_share(fusion):
    """Key and value nought have e^0 in the softmax; one that is not there has not."""
    tokens = torch.randn(1, 4, 16, generator=torch.Generator().manual_seed(0))
    clear, there = tokens.clone(), torch.ones(1, 4).bool()
    clear[0, 0] = 0
    without = fusion.pool(tokens[:, 1:], there[:, 1:])
    assert not torch.allclose(fusion.pool(clear, there), without)
    there[0, 0] = False
    torch.testing.assert_close(fusion.pool(tokens, there), without, atol=1e-6, rtol=1e-4)


def test_rendered_depth():
    """A ray through an opaque Gaussian sees its depth; through a half clear one, a mean with what lies behind it."""
    rays = torch.tensor([[[[0.0, 0, 1], [0.5, 0, 1]]]])
    mu = torch.tensor([[[[0.0, 0, 4], [0, 0, 2], [1.5, 0, 3]]]])
    sigma = torch.full((1, 1, 3, 3), 0.01)
    opaque = torch.ones(1, 1, 3)
    assert render(mu, sigma, opaque, rays)[0, 0].tolist() == pytest.approx([2, 3])
    half = torch.tensor([[[1.0, 0.5, 1]]])
    assert float(render(mu, sigma, half, rays)[0, 0, 0]) == pytest.approx(0.5 * 2 + 0.5 * 4)


def test_log_error():
    depth, there = torch.tensor([[[1.0, 2, 4, 9]]]), torch.tensor([[[True, True, True, False]]])
    double = 2 * depth
    assert float(scale_invariant_log(double, depth, there, balance=1.0)) == pytest.approx(0, abs=1e-6)
    assert float(scale_invariant_log(double, depth, there, balance=0.5)) == pytest.approx(0.5 * 0.480453, rel=1e-4)
    assert float(scale_invariant_log(double, depth, ~there & False, balance=0.5)) == 0


def test_a_scene_without_depth_has_no_share_in_the_depth_loss(fusion):
    def twice(given, names):
        return replace(given, **{name: torch.cat([getattr(given, name)] * 2) for name in names})

    fusion.train()
    given = scene()
    output = twice(given.output, ("tokens", "valid", "depth", "extrinsics", "intrinsics"))
    output.depth[1] = 0
    both = replace(twice(given, ("tokens", "question", "asked", "vision", "shown")), output=output)
    torch.testing.assert_close(fusion.scene(both).losses["depth"], fusion.scene(given).losses["depth"])


def test_the_depth_loss_is_for_training_and_moves_gaussians(fusion):
    assert fusion.scene(scene()).losses == {}
    fusion.train().scene(scene()).losses["depth"].backward()
    for name in ("affine.weight", "affine.bias", "offset.weight", "spread.weight", "opacity.weight"):
        grad = fusion.get_parameter(name).grad
        assert bool(grad.isfinite().all()) and bool(grad.any()), name
