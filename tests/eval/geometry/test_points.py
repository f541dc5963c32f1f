import numpy as np
import properties
import pytest
import torch
from scipy.spatial import cKDTree

from gnomon.eval.geometry import points
from gnomon.eval.geometry.points import compare_clouds, nearest, point_map_error

GRID = np.stack(np.meshgrid(*[np.arange(4.0)] * 3), axis=-1).reshape(-1, 3)


def cloud(seed: int, count: int = 1000) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, 3))


@pytest.mark.parametrize("held", [4_000_000, 7_000])
def test_nearest_equals_brute_force_and_scipys_tree(monkeypatch, held):
    monkeypatch.setattr(points, "_HELD", held)
    source, target = cloud(0), cloud(1, 900)
    distance, index = nearest(source, target)
    square = ((source[:, None] - target[None]) ** 2).sum(-1)
    np.testing.assert_array_equal(index, square.argmin(1))
    np.testing.assert_allclose(distance, np.sqrt(square.min(1)), rtol=1e-14)
    wanted, tree = cKDTree(target).query(source)
    np.testing.assert_array_equal(index, tree)
    np.testing.assert_allclose(distance, wanted, rtol=1e-14)


def test_nearest_keeps_small_distances_at_large_coordinates():
    far = np.array([[1e6, 1e6, 1e6]])
    assert nearest(far + 1e-4, far)[0][0] == pytest.approx(np.sqrt(3) * 1e-4, rel=1e-5)


def test_identical_clouds():
    found = compare_clouds(GRID, GRID)
    perfect = {"precision", "recall", "f"}
    assert all(value == (name in perfect) for name, value in found.items())


def test_a_small_shift_is_what_it_is():
    found = compare_clouds(GRID + np.array([0.3, 0, 0.2]), GRID, threshold=0.1)
    size = np.hypot(0.3, 0.2)
    assert found["accuracy"] == pytest.approx(size) and found["completeness"] == pytest.approx(size)
    assert found["overall"] == pytest.approx(size) and found["chamfer_l1"] == pytest.approx(2 * size)
    assert found["chamfer_l2"] == pytest.approx(2 * size**2)
    assert (found["precision"], found["recall"], found["f"]) == (0, 0, 0)


def test_a_part_is_accurate_but_not_complete():
    found = compare_clouds(GRID[GRID[:, 0] < 2], GRID)
    assert found["accuracy"] == 0 and found["precision"] == 1
    # half the points are missed, by 1 or by 2
    assert found["completeness"] == 0.75 and found["recall"] == 0.5 and found["f"] == pytest.approx(2 / 3)
    assert found["chamfer_l2"] == 1.25 and found["completeness_median"] == 0.5
    assert compare_clouds(GRID, GRID[GRID[:, 0] < 2])["accuracy"] == 0.75


def test_clipping():
    far = np.concatenate([GRID, [[100.0, 0, 0]]])
    assert compare_clouds(far, GRID, clip=0.5)["accuracy"] == pytest.approx(0.5 / 65)
    assert compare_clouds(far, GRID)["accuracy"] == pytest.approx(97 / 65)


def test_normal_consistency():
    up, side = np.tile([0.0, 0, 1], (64, 1)), np.tile([0.6, 0, 0.8], (64, 1))
    for sign in (1, -1):
        found = compare_clouds(GRID, GRID, normals=(sign * side, up))
        assert found["normal_consistency"] == pytest.approx(0.8)


def test_order_of_points_and_common_motion_do_not_matter():
    pair = torch.from_numpy(np.stack([cloud(0, 60), cloud(1, 60)]))
    values = lambda x: torch.tensor(list(compare_clouds(*x.numpy(), threshold=0.5).values()))  # noqa: E731
    properties.assert_permutes(lambda x: values(torch.stack([x, pair[1]])), pair[0], atol=1e-12)
    properties.assert_invariant(values, properties.rigid(5), properties.move, pair, atol=1e-10)


def test_nothing_is_nan_and_rubbish_is_refused():
    empty = np.empty((0, 3))
    for pair in ((empty, GRID), (GRID, empty)):
        found = compare_clouds(*pair, normals=(empty, empty))
        assert all(np.isnan(value) for value in found.values()) and "normal_consistency" in found
    with pytest.raises(ValueError, match=r"\(N, 3\)"):
        compare_clouds(GRID.reshape(8, 8, 3), GRID)
    with pytest.raises(ValueError, match="not finite"):
        compare_clouds(GRID * np.nan, GRID)


def test_point_map_error():
    truth = np.random.default_rng(0).normal(size=(2, 4, 5, 3)) + np.array([0, 0, 5])
    mask = np.random.default_rng(1).random((2, 4, 5)) > 0.3
    assert point_map_error(1.1 * truth, truth, mask, align=False) == pytest.approx(0.1)
    noise = 0.1 * np.random.default_rng(2).normal(size=truth.shape)
    guess = torch.from_numpy(np.where(mask[..., None], truth + noise, np.nan))
    wanted = point_map_error(guess.numpy(), truth, mask)
    assert 0.01 < wanted < 0.1
    for g in properties.rigid(5, similar=True):
        assert point_map_error(properties.move(g, guess).numpy(), truth, mask) == pytest.approx(wanted, abs=1e-10)
    assert np.isnan(point_map_error(truth, truth, mask & False))
