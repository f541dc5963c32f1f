from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from gnomon.data.sources.scenes.source import Scenes
from gnomon.data.views import prepare
from gnomon.eval.geometry.measure import measured
from gnomon.vlm.geometry.base import GeometryInput
from gnomon.vlm.geometry.known import Known
from gnomon.vlm.geometry.plane_sweep import PlaneSweep
from gnomon.vlm.layout import ViewsSpec


@pytest.fixture(scope="module")
def given() -> GeometryInput:
    found = [
        prepare(s.geometry, ViewsSpec(4, None), images=(), name="") for s in Scenes(count=2, size=(64, 64), views=3)
    ]
    return GeometryInput.stack(found, "cpu")


@pytest.fixture(scope="module")
def made() -> PlaneSweep:
    torch.manual_seed(0)
    encoder = PlaneSweep(patch=4)
    torch.nn.init.normal_(encoder.weigh.planes.weight, std=0.1)
    return encoder


def test_depth_has_the_unit_of_the_cameras(made, given):
    extrinsics = given.extrinsics.clone()
    # a power of two rounds nothing
    extrinsics[..., 3] *= 4
    one, four = (made.measure(replace(given, extrinsics=e), heads=made.heads) for e in (given.extrinsics, extrinsics))
    torch.testing.assert_close(four.depth, 4 * one.depth, rtol=1e-6, atol=0)
    torch.testing.assert_close(four.points, 4 * one.points, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(four.depth_confidence, one.depth_confidence, rtol=1e-5, atol=1e-6)
    assert one.scale.tolist() == [1, 1]


def test_without_a_distance_between_cameras_views_tell_each_other_nothing(made, given):
    centre, turn = torch.tensor([3.1, -2.7, 5.3]), given.extrinsics[..., :3]
    turned = torch.cat([turn, -(turn @ centre)[..., None]], -1)
    out = made.measure(replace(given, extrinsics=turned), heads=["depth"])
    for view in range(3):
        one = {name: getattr(given, name)[:, view : view + 1] for name in ("images", "valid", "intrinsics")}
        alone = made.measure(GeometryInput(**one, extrinsics=turned[:, view : view + 1]), heads=["depth"])
        torch.testing.assert_close(out.depth[:, view], alone.depth[:, 0], rtol=1e-4, atol=1e-4)
    assert bool((out.depth >= made.nearest).all()) and bool((out.depth <= made.farthest).all())


def test_the_world_may_lie_anywhere(made, given):
    turn = torch.linalg.matrix_exp(torch.tensor([[0.0, 0.4, -0.8], [-0.4, 0, 0.3], [0.8, -0.3, 0]]))
    moved = torch.cat([given.extrinsics[..., :3] @ turn, given.extrinsics[..., 3:]], -1)
    moved[..., 3:] = moved[..., 3:] + moved[..., :3] @ torch.tensor([[1.0], [-2], [0.5]])
    one, other = (made.measure(replace(given, extrinsics=e), heads=made.heads) for e in (given.extrinsics, moved))
    for name in ("depth", "points", "tokens"):
        torch.testing.assert_close(getattr(other, name), getattr(one, name), rtol=2e-3, atol=2e-3)


def test_tokens_are_those_of_known_with_its_depth(made, given):
    out = made.measure(given, heads=["depth"])
    known = Known(patch=4).measure(replace(given, depth=out.depth.detach()), heads=["points"])
    points = made.measure(given, heads=["points"]).points
    torch.testing.assert_close(points, known.points, rtol=1e-4, atol=1e-4)
    assert out.tokens.shape == known.tokens.shape
    cosine = torch.nn.functional.cosine_similarity(out.tokens[..., :-1], known.tokens[..., :-1], dim=-1)
    # the mean of a patch counts sure pixels more, which turns the fastest waves
    assert float(cosine.median()) > 0.99


def test_planes_lie_between_the_nearest_and_the_farthest(given):
    torch.manual_seed(0)
    out = PlaneSweep(patch=4, nearest=2.0, farthest=3.0).measure(given, heads=["depth"])
    centres = -(given.extrinsics[..., :3].mT @ given.extrinsics[..., 3:])[..., 0]
    unit = torch.cdist(centres, centres).sum(-1)[..., None, None] / 2
    assert bool((out.depth > 1.999 * unit).all()) and bool((out.depth < 3.001 * unit).all())


def test_weights_of_the_package_know_scenes_that_they_were_not_taught():
    encoder = PlaneSweep(patch=4, weights="configs:geometry/plane_sweep")
    found = measured(encoder, Scenes(count=32, split="test", size=(64, 64), views=3), ViewsSpec(4, None))
    assert found["AbsRel"] < 0.1 and found["delta1"] > 0.9
    assert found["AbsRel of one view"] > found["AbsRel of the median depth"] > 2 * found["AbsRel"]


def test_every_parameter_learns(given):
    encoder = PlaneSweep(patch=4, frozen=False)
    # the network begins silent, so that what is before it has no gradient yet
    torch.nn.init.normal_(encoder.weigh.planes.weight)
    out = encoder.measure(given, heads=encoder.heads)
    (out.depth.square().mean() + out.depth_confidence.mean()).backward()
    assert [name for name, p in encoder.named_parameters() if p.grad is None or not p.grad.any()] == []


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"patch": 6}, "patch 6.* multiple of 4"),
        ({"planes": 1}, "planes 1 from"),
        ({"nearest": 70.0}, "from 70.0 to 60.0"),
        ({"groups": 3}, "width 16 in 3 groups"),
        ({"width": 6, "groups": 3}, "width 6; give a multiple of 4"),
        ({"width": 0}, "width 0; give a multiple of 4"),
    ],
)
def test_wrong_options_are_refused(options, told):
    with pytest.raises(ValueError, match=told) as found:
        PlaneSweep(**options)
    assert "\n" not in str(found.value)


def test_cameras_are_asked_for(made, given):
    with pytest.raises(ValueError, match="PlaneSweep needs intrinsics, extrinsics of every view; give them, or use"):
        made.measure(replace(given, intrinsics=None, extrinsics=None))
