import numpy as np
import pytest
from scipy.spatial.transform import Rotation as Reference

from gnomon.eval.geometry.align import align_depth, first_frame, fit_depth, umeyama

ALL = np.ones(200, dtype=bool)


def depths(seed: int = 0, count: int = 200) -> np.ndarray:
    return np.random.default_rng(seed).uniform(1, 9, count)


def similarity(seed: int = 0) -> tuple[float, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.uniform(0.2, 5), Reference.random(random_state=seed).as_matrix(), rng.normal(size=3) * 10


@pytest.mark.parametrize("seed", range(5))
def test_umeyama_recovers_a_similarity(seed):
    scale, rotation, shift = similarity(seed)
    x = np.random.default_rng(seed).normal(size=(30, 3))
    found = umeyama(x, scale * x @ rotation.T + shift)
    assert abs(found.scale - scale) < 1e-12
    np.testing.assert_allclose(found.rotation, rotation, atol=1e-12)
    np.testing.assert_allclose(found.translation, shift, atol=1e-11)
    # with the scale fixed only the rotation can be recovered
    fixed = umeyama(x, scale * x @ rotation.T + shift, scale=False)
    assert fixed.scale == 1
    np.testing.assert_allclose(fixed.rotation, rotation, atol=1e-12)


def test_rotation_equals_scipys_on_noisy_points():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 40, 3))
    centred = (y - y.mean(0), x - x.mean(0))
    np.testing.assert_allclose(umeyama(x, y).rotation, Reference.align_vectors(*centred)[0].as_matrix(), atol=1e-7)


def test_similarity_is_the_best_there_is():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 40, 3))
    best = umeyama(x, y)
    least = ((best.points(x) - y) ** 2).sum()
    for _ in range(20):
        turn = Reference.from_rotvec(0.01 * rng.normal(size=3)).as_matrix()
        other = (best.scale + 0.01 * rng.normal()) * x @ (turn @ best.rotation).T + best.translation
        assert ((other - y) ** 2).sum() > least


def test_a_reflection_is_never_returned():
    x = np.random.default_rng(0).normal(size=(30, 3))
    found = umeyama(x, x * [1, 1, -1])
    assert abs(np.linalg.det(found.rotation) - 1) < 1e-12


@pytest.mark.parametrize("count", [1, 2, 3])
def test_few_or_collinear_points(count):
    scale, rotation, shift = similarity()
    x = np.outer(np.arange(count), [1.0, 2.0, 3.0])
    found = umeyama(x, scale * x @ rotation.T + shift)
    np.testing.assert_allclose(found.points(x), scale * x @ rotation.T + shift, atol=1e-12)
    assert abs(np.linalg.det(found.rotation) - 1) < 1e-12


def test_no_points_and_bad_points():
    nothing = umeyama(np.empty((0, 3)), np.empty((0, 3)))
    assert np.isnan(nothing.scale) and np.isnan(nothing.translation).all()
    with pytest.raises(ValueError, match="one order"):
        umeyama(np.zeros((3, 3)), np.zeros((4, 3)))
    with pytest.raises(ValueError, match="finite"):
        umeyama(np.full((3, 3), np.nan), np.zeros((3, 3)))


def test_points_and_cameras_move_together():
    """What a camera sees is only scaled."""
    scale, rotation, shift = similarity()
    x = np.random.default_rng(0).normal(size=(30, 3))
    moved = umeyama(x, scale * x @ rotation.T + shift)
    camera = np.concatenate([similarity(1)[1], similarity(1)[2][:, None]], axis=1)
    there = moved.cameras(camera[None])[0]
    before, after = x @ camera[:, :3].T + camera[:, 3], moved.points(x) @ there[:, :3].T + there[:, 3]
    np.testing.assert_allclose(after, scale * before, atol=1e-10)


@pytest.mark.parametrize("how", ["median", "scale", "scale_shift"])
def test_a_factor_is_undone(how):
    truth = depths()
    np.testing.assert_allclose(align_depth(truth / 3, truth, ALL, how=how), truth, atol=1e-12)


def test_factor_and_offset_are_undone_and_equal_numpys_least_squares():
    truth = depths()
    np.testing.assert_allclose(align_depth((truth - 2) / 7, truth, ALL, how="scale_shift"), truth, atol=1e-12)
    guess = depths(1)
    system = np.stack([guess, np.ones_like(guess)], axis=1)
    np.testing.assert_allclose(
        fit_depth(guess, truth, ALL, how="scale_shift"), np.linalg.lstsq(system, truth, rcond=None)[0]
    )
    scale = np.linalg.lstsq(system[:, :1], truth, rcond=None)[0][0]
    np.testing.assert_allclose(fit_depth(guess, truth, ALL, how="scale"), (scale, 0))


def test_median_by_hand_and_only_what_the_mask_shows():
    guess, truth = np.array([1.0, 2, 4, np.nan]), np.array([3.0, 10, 8, 100])
    mask = np.array([True, True, True, False])
    assert fit_depth(guess, truth, mask, how="median") == (4, 0)
    assert fit_depth(guess, truth, mask, how="none") == (1, 0)
    assert np.isnan(fit_depth(guess, truth, ~mask & False, how="median")).all()


@pytest.mark.parametrize("how", ["median", "scale"])
@pytest.mark.parametrize("factor", [0.0, -1.0])
def test_a_single_factor_is_positive_or_none(how, factor):
    assert np.isnan(fit_depth(factor * depths(), depths(), ALL, how=how)[0])


def test_disparity_is_fitted_as_disparity():
    truth = depths()
    found = align_depth(0.3 / truth - 0.02, truth, ALL, how="scale_shift", disparity=True)
    np.testing.assert_allclose(found, truth, rtol=1e-10)
    # a disparity below zero is far away, not behind the camera
    far = align_depth(np.array([0.5, -1.0]), np.array([2.0, 3.0]), np.array([True, False]), how="none", disparity=True)
    assert far[0] == 2 and far[1] > 1e5


def test_constant_prediction_keeps_a_shift_only():
    assert fit_depth(np.full(200, 3.0), depths(), ALL, how="scale_shift") == (0.0, depths().mean())


def test_unknown_alignment_is_refused():
    with pytest.raises(ValueError, match="'best'"):
        fit_depth(depths(), depths(), ALL, how="best")


def test_first_frame():
    rng = np.random.default_rng(0)
    cameras = np.concatenate([Reference.random(3, random_state=0).as_matrix(), rng.normal(size=(3, 3, 1))], axis=-1)
    points = rng.normal(size=(3, 4, 5, 3))
    mask = rng.random((3, 4, 5)) > 0.3
    found, moved, unit = first_frame(cameras, points, mask)
    np.testing.assert_allclose(found[0], np.eye(3, 4), atol=1e-12)
    assert abs(np.linalg.norm(moved[mask], axis=-1).mean() - 1) < 1e-12
    # what each camera sees is as before, over the unit
    before = np.einsum("sij,shwj->shwi", cameras[..., :3], points) + cameras[:, None, None, :, 3]
    after = np.einsum("sij,shwj->shwi", found[..., :3], moved) + found[:, None, None, :, 3]
    np.testing.assert_allclose(after, before / unit, atol=1e-12)
    assert np.isnan(first_frame(cameras, points, mask & False)[2])
