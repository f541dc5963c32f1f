import numpy as np
import properties
import pytest
import torch
from scipy.spatial.transform import Rotation as Reference

from gnomon.eval.geometry.pose import PairErrors, ate, centres, focal_error, pair_errors, rotation_error, rpe

FORMS = ("textbook", "released")


def cameras(seed: int = 0, count: int = 6) -> np.ndarray:
    rng = np.random.default_rng(seed)
    turns = Reference.random(count, random_state=seed).as_matrix()
    return np.concatenate([turns, 3 * rng.normal(size=(count, 3, 1))], axis=-1)


def noisy(extrinsics: np.ndarray, degrees: float = 10, seed: int = 1) -> np.ndarray:
    rng = np.random.default_rng(seed)
    turns = Reference.from_rotvec(rng.normal(size=(len(extrinsics), 3)) * degrees, degrees=True).as_matrix()
    shifts = extrinsics[..., 3:] + 0.3 * rng.normal(size=(len(extrinsics), 3, 1))
    return np.concatenate([turns @ extrinsics[..., :3], shifts], axis=-1)


def errors(degrees: float, count: int = 10) -> PairErrors:
    return PairErrors(np.full(count, degrees), np.zeros(count))


@pytest.mark.parametrize(("degrees", "wanted"), [(0, 1), (15.5, 0.5), (30.1, 0), (30, 1 / 30), (29.99, 1 / 30)])
def test_auc_of_equal_errors(degrees, wanted):
    assert errors(degrees).auc() == pytest.approx(wanted, abs=1e-15)
    assert PairErrors(errors(degrees).translation, errors(degrees).rotation).auc() == pytest.approx(wanted, abs=1e-15)


def test_rates_by_hand():
    found = PairErrors(np.array([1.0, 5.0, 20.0, 4.0]), np.array([np.nan, 1.0, 40.0, 4.9]))
    assert (found.rra(5), found.rra(5.1), found.rta(5)) == (0.5, 0.75, 2 / 3)
    # larger errors 1, 5, 40, 4.9: below 1 none, 2 to 4: one, 5: two, 6 to 30: three
    assert found.auc() == pytest.approx((0 + 0.25 * 3 + 0.5 * 1 + 0.75 * 25) / 30)
    assert found.auc(3) == pytest.approx(0.5 / 3)
    assert found.summary((5,)) == {"rra_5": 0.5, "rta_5": 2 / 3, "auc_3": found.auc(3), "auc_5": found.auc(5)}


@pytest.mark.parametrize("form", FORMS)
def test_perfect_cameras(form):
    found = pair_errors(cameras(), cameras(), form=form)
    assert len(found.rotation) == 15
    assert set(found.summary().values()) == {1.0}


@pytest.mark.parametrize("form", FORMS)
def test_frame_and_scale_of_the_prediction_do_not_matter(form):
    truth = cameras()
    guess = torch.from_numpy(noisy(truth))
    both = lambda x: torch.from_numpy(np.stack(list(vars(pair_errors(x.numpy(), truth, form=form)).values())))  # noqa: E731
    properties.assert_invariant(both, properties.rigid(6, similar=True), properties.reframe, guess, atol=1e-10)
    # the form matters, and both forms see something
    assert 1 < float(both(guess).mean()) < 90


def test_forms_are_as_the_sheet_writes_them():
    """Against 4x4 matrices and numpy's inverse, pair by pair."""
    truth, guess = cameras(), noisy(cameras(), 40)
    found = {form: pair_errors(guess, truth, form=form) for form in FORMS}
    square = [np.concatenate([x, np.tile([[[0.0, 0, 0, 1]]], (6, 1, 1))], axis=1) for x in (guess, truth)]
    pairs = [(i, j) for i in range(6) for j in range(i + 1, 6)]
    for form in FORMS:
        for k, (i, j) in enumerate(pairs):
            if form == "textbook":
                a, b = (x[j] @ np.linalg.inv(x[i]) for x in square)
            else:
                a, b = (np.linalg.inv(x[i] @ np.linalg.inv(x[0])) @ x[j] @ np.linalg.inv(x[0]) for x in square)
            angle = np.degrees(Reference.from_matrix(a[:3, :3] @ b[:3, :3].T).magnitude())
            assert found[form].rotation[k] == pytest.approx(angle, abs=1e-6)
            cosine = a[:3, 3] @ b[:3, 3] / np.linalg.norm(a[:3, 3]) / np.linalg.norm(b[:3, 3])
            wanted = np.degrees(np.arccos(abs(cosine) if form == "released" else cosine))
            assert found[form].translation[k] == pytest.approx(wanted, abs=1e-6)
    assert not np.allclose(found["textbook"].rotation, found["released"].rotation)


def test_folding():
    truth, guess = cameras(), cameras()
    guess[..., 3] *= -1
    assert pair_errors(guess, truth).translation == pytest.approx(np.full(15, 180.0))
    assert pair_errors(guess, truth, folded=True).translation == pytest.approx(np.zeros(15), abs=1e-6)
    assert pair_errors(guess, truth, form="released").translation == pytest.approx(np.zeros(15), abs=1e-6)
    with pytest.raises(ValueError, match="folded"):
        pair_errors(guess, truth, form="released", folded=False)


def test_cameras_in_one_place():
    truth = np.concatenate([cameras(0, 2)[..., :3], np.zeros((2, 3, 1))], axis=-1)
    found = pair_errors(noisy(truth, 0), truth)
    assert np.isnan(found.translation).all() and np.isnan(found.rta(5))
    # skipped, not failed: the rotation alone decides
    assert found.auc() == 1
    assert pair_errors(noisy(truth, 0), truth, form="released").translation == 90


@pytest.mark.parametrize("form", FORMS)
def test_a_lost_camera_fails_its_pairs(form):
    guess = cameras()
    guess[5] = np.nan
    found = pair_errors(guess, cameras(), form=form)
    assert int(np.isinf(found.rotation).sum()) == 5
    assert found.rra(5) == pytest.approx(10 / 15) == found.auc()


@pytest.mark.parametrize("count", [0, 1])
@pytest.mark.parametrize("form", FORMS)
def test_without_a_pair_all_is_nan(form, count):
    found = pair_errors(cameras()[:count], cameras()[:count], form=form)
    assert all(np.isnan(value) for value in found.summary().values())


def test_scenes_join():
    scenes = [pair_errors(noisy(cameras(k), seed=k), cameras(k)) for k in range(3)]
    joined = PairErrors.join(scenes)
    assert joined.auc() == pytest.approx(np.mean([scene.auc() for scene in scenes]))
    assert np.isnan(PairErrors.join([]).auc())


def test_rotation_error_is_exact_near_its_ends():
    for degrees in (0, 1e-8, 1e-3, 90, 180 - 1e-3, 180):
        turn = Reference.from_rotvec([0, degrees, 0], degrees=True).as_matrix()
        start = cameras()[0, :, :3]
        assert rotation_error(turn @ start, start) == pytest.approx(degrees, abs=1e-12)


def test_ate():
    truth = cameras()
    assert ate(truth, truth) < 1e-12
    group = properties.rigid(4, similar=True)[1:]
    for g in group:
        moved = properties.reframe(g, torch.from_numpy(truth)).numpy()
        assert ate(moved, truth) < 1e-12 < 1e-2 < ate(moved, truth, align="se3") < ate(moved, truth, align="none")
    # all centres 5 away, and nothing is allowed to be aligned
    shifted = truth.copy()
    shifted[..., 3] -= truth[..., :3] @ [3.0, 4.0, 0.0]
    np.testing.assert_allclose(centres(shifted), centres(truth) + np.array([3, 4, 0]))
    assert ate(shifted, truth, align="none") == pytest.approx(5)
    assert np.isnan(ate(truth[:0], truth[:0]))
    with pytest.raises(ValueError, match="'best'"):
        ate(truth, truth, align="best")


def line(step: float, degrees: float) -> np.ndarray:
    """Cameras that go along their own x by `step` and turn about y by `degrees`, frame by frame."""
    poses, pose = [], np.eye(4)
    go = np.eye(4)
    go[:3, :3], go[0, 3] = Reference.from_rotvec([0, degrees, 0], degrees=True).as_matrix(), step
    for _ in range(5):
        poses.append(np.linalg.inv(pose)[:3])
        pose = pose @ go
    return np.stack(poses)


def test_rpe_by_hand():
    translation, rotation = rpe(line(1.25, 3), line(1.0, 3), align="none")
    assert (translation, rotation) == pytest.approx((0.25, 0))
    translation, rotation = rpe(line(1.0, 5), line(1.0, 3), align="none")
    assert (translation, rotation) == pytest.approx((0, 2))
    assert rpe(line(1.25, 3), line(1.0, 3)) == pytest.approx((0, 0), abs=1e-12)
    assert rpe(line(1.0, 5), line(1.0, 3), step=2, align="none")[1] == pytest.approx(4)
    assert np.isnan(rpe(cameras()[:1], cameras()[:1])).all()


def test_focal_error():
    truth = np.tile(np.diag([100.0, 200.0, 1.0]), (3, 1, 1))
    guess = truth.copy()
    guess[:, 0, 0], guess[:, 1, 1] = 110, 160
    assert focal_error(guess, truth) == pytest.approx(0.15)
    assert np.isnan(focal_error(truth[:0], truth[:0]))


def test_refusals():
    with pytest.raises(ValueError, match="'third'"):
        pair_errors(cameras(), cameras(), form="third")
    with pytest.raises(ValueError, match="view by view"):
        pair_errors(cameras()[:3], cameras())
