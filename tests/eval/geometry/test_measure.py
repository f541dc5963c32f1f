"""A geometry encoder measured on scenes: numbers worked out by hand, of an encoder that knows, and of wrong ones."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from gnomon.data.errors import BadSample
from gnomon.data.sample import Geometry, Sample, Turn
from gnomon.data.sources.scenes.source import Scenes
from gnomon.eval.geometry.measure import measured
from gnomon.vlm.geometry.known import Known
from gnomon.vlm.geometry.tinygeo import TinyGeo
from gnomon.vlm.layout import ViewsSpec

SPEC = ViewsSpec(8)
NAMES = "", " of one view", " of the median depth"


class Wrong(Known):
    """Known, with what it says changed."""

    def __init__(self, change):
        super().__init__(patch=8)
        self.change = change

    def forward(self, scenes, *, layers=(), heads=()):
        return self.change(super().forward(scenes, layers=layers, heads=heads))


def times(factor, *, metric):
    """Depth, points and places of cameras, in another unit."""

    def change(out):
        for name in ("depth", "points"):
            if (value := getattr(out, name)) is not None:
                setattr(out, name, factor * value)
        if out.extrinsics is not None:
            out.extrinsics = torch.cat([out.extrinsics[..., :3], factor * out.extrinsics[..., 3:]], -1)
        return out if metric else replace(out, scale=None)

    return Wrong(change)


def flat(*, turned=0.0):
    """Two views: the left half is 2 away and the right half 4; the second camera is 1 to the right, and turned."""
    depth = np.full((2, 16, 16), 2.0, np.float32)
    depth[:, :, 8:] = 4
    lens = np.broadcast_to(np.array([[16.0, 0, 8], [0, 16, 8], [0, 0, 1]]), (2, 3, 3))
    c, s = math.cos(math.radians(turned)), math.sin(math.radians(turned))
    cameras = np.stack([np.eye(3, 4), np.array([[c, -s, 0, -1], [s, c, 0, 0], [0, 0, 1, 0]])])
    pixels = tuple(np.zeros((2, 16, 16, 3), np.uint8))
    geometry = Geometry(pixels, depth=depth, intrinsics=lens.copy(), extrinsics=cameras)
    return Sample("x", (Turn("user", "?"),), geometry=geometry)


def test_who_knows_everything_makes_no_error():
    found = measured(Known(patch=8), Scenes(count=3, size=(48, 48), views=(2, 3), split="test"), SPEC)
    assert found["scenes"] == 3 and found["AUC@30"] == 1 and found["delta1"] == found["delta1 of one view"] == 1
    for name in ("AbsRel", "AbsRel of one view", "AbsRel of points", "Chamfer of points"):
        assert found[name] == pytest.approx(0, abs=1e-5)
    assert found["AbsRel of the median depth"] > 0.1


def test_the_median_depth_is_the_same_everywhere():
    """3 instead of 2 and of 4: wrong by 1/2 and by 1/4, and by more than a quarter both times."""
    found = measured(Known(patch=8), [flat()], SPEC)
    assert found["AbsRel of the median depth"] == pytest.approx(0.375) and found["delta1 of the median depth"] == 0


@pytest.mark.parametrize(("factor", "delta1"), [(1.2, 1), (1.3, 0), (0.5, 0)])
def test_a_metric_encoder_is_held_to_its_unit(factor, delta1):
    found = measured(times(factor, metric=True), [flat()], SPEC)
    for name in ("AbsRel", "AbsRel of one view", "AbsRel of points"):
        assert found[name] == pytest.approx(abs(factor - 1), abs=1e-6)
    assert found["delta1"] == found["delta1 of one view"] == delta1 and found["AUC@30"] == 1
    assert found["Chamfer of points"] > 0.1


def test_what_is_up_to_scale_is_aligned():
    found = measured(times(3.0, metric=False), [flat()], SPEC)
    assert found["delta1"] == 1
    for name in ("AbsRel", "AbsRel of one view", "AbsRel of points", "Chamfer of points"):
        assert found[name] == pytest.approx(0, abs=1e-5)


def test_one_factor_serves_all_views_and_one_view_has_its_own():
    def change(out):
        depth = out.depth.clone()
        depth[:, 1:] *= 2
        return replace(out, depth=depth, scale=None)

    found = measured(Wrong(change), [flat()], SPEC)
    # truth 2, 4, 2, 4 and guesses 2, 4, 4, 8: medians 3 and 4, so 1.5, 3, 3, 6
    assert found["AbsRel"] == pytest.approx((0.25 + 0.25 + 0.5 + 0.5) / 4)
    assert found["AbsRel of one view"] == pytest.approx(0)


def test_cameras_that_are_off_by_fifteen_degrees_and_a_half():
    """The published area under the curve: half of the bins of a degree are beyond it."""
    turned = torch.from_numpy(flat(turned=15.5).geometry.extrinsics)[None].float()
    found = measured(Wrong(lambda out: replace(out, extrinsics=turned)), [flat()], SPEC)
    assert found["AUC@30"] == pytest.approx(0.5)


def test_points_that_are_no_number_are_an_error():
    def change(out):
        points = out.points.clone() if out.points is not None else None
        if points is not None:
            points[0, 0, 0, 0] = math.nan
        return replace(out, points=points)

    found = measured(Wrong(change), [flat()], SPEC)
    assert found["AbsRel of points"] == found["Chamfer of points"] == math.inf and found["AbsRel"] == 0


@pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("metric", [True, False])
def test_depth_that_is_no_number_anywhere_is_an_error(broken, metric):
    def change(out):
        depth = out.depth.clone()
        depth[0, 0, 3, 3] = broken
        return replace(out, depth=depth, scale=out.scale if metric else None)

    # the scene that is right does not hide the one that is not
    scenes, calls = [flat(), flat()], []

    def second(out):
        calls.append(1)
        return change(out) if out.depth is not None and len(calls) > 2 else out

    found = measured(Wrong(second), scenes, SPEC)
    for name in ("", " of one view"):
        assert found[f"AbsRel{name}"] == math.inf and found[f"delta1{name}"] == 0.5


@pytest.mark.parametrize("factor", [0.0, -1.0])
def test_depth_that_no_positive_factor_brings_to_the_truth_is_an_error(factor):
    found = measured(Wrong(lambda out: replace(out, depth=factor * out.depth, scale=None)), [flat()], SPEC)
    for name in ("", " of one view"):
        assert found[f"AbsRel{name}"] == math.inf and found[f"delta1{name}"] == 0


@pytest.mark.parametrize("metric", [True, False])
def test_points_of_a_world_without_cameras_are_measured_up_to_a_similarity(metric):
    """In metres there is nothing to compare: nobody says where that world is."""
    turn = torch.tensor([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]])

    def change(out):
        points = None if out.points is None else 3 * out.points @ turn.T + 7
        return replace(out, points=points, frame="world", extrinsics=None, scale=out.scale if metric else None)

    found = measured(Wrong(change), [flat()], SPEC)
    for name in ("AbsRel of points", "Chamfer of points"):
        assert math.isnan(found[name]) if metric else found[name] == pytest.approx(0, abs=1e-5)


def test_only_what_is_predicted_is_measured_and_nothing_is_changed():
    torch.manual_seed(0)
    encoder = TinyGeo(heads=("depth",), frozen=False)
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    found = measured(encoder, [flat()], SPEC)
    assert found.keys() == {"scenes", *(f"{m}{n}" for m in ("AbsRel", "delta1") for n in NAMES)}
    assert encoder.training and all(torch.equal(value, before[name]) for name, value in encoder.state_dict().items())


def test_where_nothing_is_known_there_is_nothing_to_compare():
    empty = flat()
    empty.geometry.depth[:] = 0
    found = measured(Known(patch=8), [empty], SPEC)
    assert math.isnan(found["AbsRel"]) and math.isnan(found["Chamfer of points"]) and found["AUC@30"] == 1
    with pytest.raises(BadSample, match="sample x lacks intrinsics, extrinsics, depth; an encoder is measured by"):
        measured(Known(patch=8), [Sample("x", (Turn("user", "?"),))], SPEC)


def test_an_encoder_sees_of_what_is_known_only_what_it_reads():
    seen = []

    class Blind(TinyGeo):
        def forward(self, scenes, *, layers=(), heads=()):
            seen.append((scenes.depth, scenes.extrinsics, scenes.intrinsics))
            return super().forward(scenes, layers=layers, heads=heads)

    measured(Blind(), [flat()], SPEC)
    assert seen == [(None, None, None)] * 2
