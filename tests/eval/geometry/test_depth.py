import math

import numpy as np
import pytest

from gnomon.data.cameras import inverse
from gnomon.eval.geometry.align import align_depth
from gnomon.eval.geometry.depth import DepthSums, depth_errors, temporal_consistency
from gnomon.eval.geometry.mean import Mean

TRUTH = np.random.default_rng(0).uniform(1, 9, (4, 6))


@pytest.mark.parametrize("factor", [0.5, 0.9, 1.0, 1.2, 1.3, 1.6, 2.5])
def test_common_factor(factor):
    found = depth_errors(factor * TRUTH, TRUTH)
    assert found["abs_rel"] == pytest.approx(abs(factor - 1))
    assert found["silog"] == pytest.approx(0, abs=1e-5)
    assert found["rmse_log"] == pytest.approx(abs(math.log(factor)))
    assert found["log10"] == pytest.approx(abs(math.log10(factor)), abs=1e-15)
    for k in (1, 2, 3):
        assert found[f"delta_{k}"] == (max(factor, 1 / factor) < 1.25**k)
    aligned = depth_errors(align_depth(factor * TRUTH, TRUTH, TRUTH > 0, how="median"), TRUTH)
    for name, value in aligned.items():
        assert value == pytest.approx(float(name.startswith("delta")), abs=1e-5)


def test_delta_is_strict():
    assert depth_errors(np.array([1.25, 1.2]), np.array([1.0, 1.0]))["delta_1"] == 0.5
    assert depth_errors(np.array([4.0]), np.array([5.0]))["delta_1"] == 0


def test_by_hand():
    found = depth_errors(np.array([1.0, 4.0]), np.array([2.0, 2.0]))
    ln2 = math.log(2)
    wanted = {
        "abs_rel": 0.75,
        "sq_rel": (0.5 + 2) / 2,
        "rmse": math.sqrt(2.5),
        "rmse_log": ln2,
        "log10": math.log10(2),
        "delta_1": 0,
        "delta_2": 0,
        "delta_3": 0,
        "silog": 100 * ln2,
    }
    assert found == pytest.approx(wanted)


def test_balance_of_silog():
    sums = DepthSums().add(2 * TRUTH, TRUTH)
    assert sums.errors(balance=0.85)["silog"] == pytest.approx(100 * math.log(2) * math.sqrt(0.15))


def test_only_valid_pixels_count():
    truth, guess = TRUTH.copy(), 1.1 * TRUTH
    truth[0, :4] = [0, -1, np.nan, np.inf]
    guess[0, :4] = np.nan
    assert depth_errors(guess, truth)["abs_rel"] == pytest.approx(0.1)
    far, mask = TRUTH < 5, TRUTH > 2
    wanted = depth_errors(np.sqrt(TRUTH)[far & mask], TRUTH[far & mask])
    assert depth_errors(np.sqrt(TRUTH), TRUTH, mask, farthest=5) == pytest.approx(wanted)


def test_nothing_to_score_is_nan_and_a_lost_prediction_shows():
    assert all(math.isnan(value) for value in depth_errors(TRUTH, 0 * TRUTH).values())
    guess = TRUTH.copy()
    guess[0, 0] = np.nan
    assert math.isnan(depth_errors(guess, TRUTH)["abs_rel"])
    with pytest.raises(ValueError, match="resize"):
        depth_errors(TRUTH[:2], TRUTH)


def test_sums_of_parts_are_those_of_the_whole():
    guess = np.sqrt(TRUTH)
    parts = DepthSums().add(guess[:1], TRUTH[:1]).add(guess[1:], TRUTH[1:])
    assert parts.errors() == pytest.approx(depth_errors(guess, TRUTH))


def test_mean_over_images_is_not_the_mean_over_pixels():
    mean, sums = Mean(), DepthSums()
    for part, factor in ((TRUTH[:1], 2.0), (TRUTH[1:], 1.0), (0 * TRUTH, 1.0)):
        mean.add(depth_errors(factor * part, part))
        sums.add(factor * part, part)
    assert mean.result()["abs_rel"] == pytest.approx(0.5)
    assert sums.errors()["abs_rel"] == pytest.approx(0.25)


def test_mean():
    mean = Mean()
    mean.add({"a": 1.0, "b": math.nan})
    mean.add({"a": 4.0, "b": math.nan}, weight=2)
    assert mean.result()["a"] == 3 and math.isnan(mean.result()["b"])


def plane(frames: int = 3) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Depth of the plane z = 6 from a camera that drives towards it by half a unit a frame, and its cameras."""
    extrinsics = np.tile(np.eye(3, 4), (frames, 1, 1))
    extrinsics[:, 2, 3] = -0.5 * np.arange(frames)
    intrinsics = np.tile([[10.0, 0, 8], [0, 10, 6], [0, 0, 1]], (frames, 1, 1))
    depth = np.ones((frames, 12, 16)) * (6 - 0.5 * np.arange(frames))[:, None, None]
    return depth, intrinsics, extrinsics


def test_temporal_consistency():
    depth, intrinsics, extrinsics = plane()
    assert temporal_consistency(depth, depth, intrinsics, extrinsics) == pytest.approx(0, abs=1e-12)
    # a factor f on every frame: f (d - 1/2) is predicted and f d - 1/2 carried
    f, d = 1.2, np.array([6.0, 5.5])
    wanted = np.mean(np.abs(f * (d - 0.5) - (f * d - 0.5)) / (f * d - 0.5))
    assert temporal_consistency(f * depth, depth, intrinsics, extrinsics) == pytest.approx(wanted, rel=2e-2)
    flicker = depth * np.array([1, 1.2, 1])[:, None, None]
    assert temporal_consistency(flicker, depth, intrinsics, extrinsics) > 0.15


def test_temporal_consistency_needs_frames_that_see_the_same():
    depth, intrinsics, extrinsics = plane()
    assert math.isnan(temporal_consistency(depth[:1], depth[:1], intrinsics, extrinsics))
    # turned around: nothing of one frame is in the next
    extrinsics[1::2, :, :3] = np.diag([-1.0, 1, -1])
    extrinsics[:, :, 3] = 0
    assert np.allclose(inverse(inverse(extrinsics)), extrinsics)
    assert math.isnan(temporal_consistency(depth, depth, intrinsics, extrinsics))
