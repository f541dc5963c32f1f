"""One scene brought to the truth: a prediction that is the truth in another unit or frame has no error left."""

import math

import numpy as np
import pytest

from gnomon.data.cameras import compose, inverse, unproject
from gnomon.eval.geometry.scene import Prediction, Truth, depth_result, points_result

RNG = np.random.default_rng(0)
H, W = 6, 8
LENS = np.broadcast_to(np.array([[7.0, 0, 4], [0, 7, 3], [0, 0, 1]]), (3, 3, 3))
DEPTH = RNG.uniform(1, 5, (3, H, W))
UNIT = 4.0


def cameras():
    """Three, none of them at the origin, turned about y."""
    angles = np.array([0.3, 0.1, -0.2])
    zero, one = np.zeros(3), np.ones(3)
    rows = [[np.cos(angles), zero, np.sin(angles)], [zero, one, zero], [-np.sin(angles), zero, np.cos(angles)]]
    turn = np.stack([np.stack(row, -1) for row in rows], 1)
    return np.concatenate([turn, RNG.normal(size=(3, 3, 1))], -1)


CAMERAS = cameras()
FIRST = compose(CAMERAS, inverse(CAMERAS[0]))
SMALL = np.concatenate([CAMERAS[..., :3], CAMERAS[..., 3:] / UNIT], -1)
TRUTH = Truth(DEPTH, LENS, CAMERAS)
OWN = np.stack([unproject(depth, lens, np.eye(3, 4)) for depth, lens in zip(DEPTH, LENS)])
WORLD = np.stack([unproject(*one) for one in zip(DEPTH, LENS, CAMERAS)])


def test_depth_up_to_scale_is_brought_to_the_truth_by_one_factor():
    found = depth_result(Prediction(depth=DEPTH / UNIT), TRUTH)
    np.testing.assert_allclose(found.depth, DEPTH)
    assert found.factor == pytest.approx(UNIT) and found.abs_rel == pytest.approx(0) and len(found.by_view) == 3
    # one factor for all views: a view of twice the depth stays wrong
    wrong = DEPTH * np.array([1, 1, 2])[:, None, None]
    by_view = depth_result(Prediction(depth=wrong), Truth(DEPTH, LENS, CAMERAS)).by_view
    assert by_view[2] > 0.5 + by_view[0]


def test_metric_depth_stays_as_it_is():
    found = depth_result(Prediction(depth=DEPTH / UNIT, scale=2.0), TRUTH)
    assert found.factor is None and found.abs_rel == pytest.approx(0.5)
    np.testing.assert_allclose(found.depth, DEPTH / 2)


def test_where_nothing_is_known_nothing_is_compared():
    for truth in (Truth(None, LENS, CAMERAS), Truth(0 * DEPTH, LENS, CAMERAS)):
        found = depth_result(Prediction(depth=DEPTH), truth)
        assert found.abs_rel is found.factor is None and found.by_view == ()
        assert truth.points is None
        assert points_result(Prediction(points=OWN, frame="ref_camera"), truth).error is None
    holes = DEPTH.copy()
    holes[1] = 0
    by_view = depth_result(Prediction(depth=DEPTH), Truth(holes, LENS, CAMERAS)).by_view
    assert math.isnan(by_view[1]) and by_view[0] == pytest.approx(0)


def test_what_is_no_number_does_not_move_the_factor_and_is_an_error():
    broken = DEPTH / UNIT
    broken[0, 0, 0] = np.nan
    found = depth_result(Prediction(depth=broken), TRUTH)
    assert found.factor == pytest.approx(UNIT) and not math.isfinite(found.abs_rel)
    assert found.abs_rel == found.by_view[0] == math.inf and found.by_view[1] == pytest.approx(0)
    points = TRUTH.points.copy()
    points[0, 0, 0] = np.nan
    assert points_result(Prediction(points=points, scale=1.0), TRUTH).error == math.inf


@pytest.mark.parametrize("factor", [0.0, -1.0])
def test_what_no_positive_factor_brings_to_the_truth_is_an_error(factor):
    depth = depth_result(Prediction(depth=factor * DEPTH), TRUTH)
    points = points_result(Prediction(points=factor * OWN, frame="own_camera"), TRUTH)
    assert depth.abs_rel == points.error == math.inf and set(depth.by_view) == {math.inf}
    assert math.isnan(depth.factor) and math.isnan(points.factor)


@pytest.mark.parametrize(
    "prediction",
    [
        Prediction(points=TRUTH.points / UNIT, frame="ref_camera", extrinsics=SMALL),
        Prediction(points=WORLD / UNIT, frame="world", extrinsics=SMALL),
        Prediction(points=OWN / UNIT, frame="own_camera", extrinsics=SMALL),
        Prediction(depth=DEPTH / UNIT, extrinsics=SMALL, intrinsics=LENS),
    ],
    ids=["reference", "world", "own", "depth"],
)
def test_points_of_any_frame_come_to_the_first_camera(prediction):
    found = points_result(prediction, TRUTH)
    np.testing.assert_allclose(found.points, TRUTH.points, atol=1e-9)
    np.testing.assert_allclose(found.cameras, FIRST, atol=1e-9)
    assert found.factor == pytest.approx(UNIT) and found.error == pytest.approx(0) and not found.lent


def test_metric_points_and_cameras_are_scaled_alike():
    for prediction in (
        Prediction(points=WORLD / UNIT, frame="world", extrinsics=SMALL, scale=UNIT),
        Prediction(points=OWN / UNIT, frame="own_camera", extrinsics=SMALL, scale=UNIT),
    ):
        found = points_result(prediction, TRUTH)
        np.testing.assert_allclose(found.points, TRUTH.points, atol=1e-9)
        np.testing.assert_allclose(found.cameras, FIRST, atol=1e-9)
        assert found.factor is None


def test_true_cameras_are_lent_where_none_are_predicted():
    found = points_result(Prediction(points=OWN / UNIT, frame="own_camera"), TRUTH)
    np.testing.assert_allclose(found.points, TRUTH.points, atol=1e-9)
    assert found.lent and found.factor == pytest.approx(UNIT) and found.cameras is None
    # nobody knows where the cameras are
    assert points_result(Prediction(points=OWN, frame="own_camera"), Truth(None, None, None)) is None
    assert points_result(Prediction(points=OWN[:1], frame="own_camera"), Truth(None, None, None)) is not None


def test_a_world_in_which_no_camera_is_placed_has_no_cloud():
    for scale in (None, 1.0):
        assert points_result(Prediction(points=WORLD, frame="world", scale=scale), TRUTH) is None


def test_no_head_no_result():
    assert depth_result(Prediction(), TRUTH) is points_result(Prediction(), TRUTH) is None
    # depth alone, of a lens that nobody knows, is no point
    assert points_result(Prediction(depth=DEPTH), TRUTH) is None
