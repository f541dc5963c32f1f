"""One point, seen by one camera, must be found in the same place whatever the camera is written like."""

import numpy as np
import pytest

from gnomon.data.cameras import CONVENTIONS, compose, convert, inverse, project, unproject


@pytest.fixture
def camera():
    """Ours: at (1, 2, 3), looking along world x, with world z up (so image x is along -y)."""
    rotation = np.array([[0.0, -1, 0], [0, 0, -1], [1, 0, 0]])
    return np.concatenate([rotation, -rotation @ np.array([[1.0], [2], [3]])], axis=1)


def test_ours_by_hand(camera):
    lens = np.array([[100.0, 0, 50], [0, 100, 40], [0, 0, 1]])
    # 5 ahead, 1 to the left, 2 up
    pixel, depth = project(np.array([6.0, 3, 5]), lens, camera)
    assert depth == pytest.approx(5) and pixel == pytest.approx([50 - 20, 40 - 40])


@pytest.mark.parametrize(
    ("name", "matrix"),
    [
        # where it is, and where its axes point, in columns
        ("opencv_pose", [[0, 0, 1, 1], [-1, 0, 0, 2], [0, -1, 0, 3]]),
        ("opengl_pose", [[0, 0, -1, 1], [-1, 0, 0, 2], [0, 1, 0, 3]]),
        # X_cam = R X + t with y up and z backwards
        ("opengl", [[0, -1, 0, 2], [0, 0, 1, -3], [-1, 0, 0, 1]]),
        # X_cam = X R + T with x left and y up
        ("pytorch3d", [[0, 0, 1, -2], [1, 0, 0, -3], [0, 1, 0, -1]]),
    ],
)
def test_others_by_hand(camera, name, matrix):
    assert convert(np.array(matrix), source=name) == pytest.approx(camera)
    assert convert(camera, source="opencv", target=name) == pytest.approx(np.array(matrix))


def test_pytorch3d_rows():
    """PyTorch3D's own definition: points are rows, x points left and y up."""
    dice = np.random.default_rng(0)
    rotation = np.linalg.qr(dice.normal(size=(3, 3)))[0]
    rotation *= np.linalg.det(rotation)
    theirs = np.concatenate([rotation, dice.normal(size=(3, 1))], axis=1)
    point = dice.normal(size=3)
    x, y, z = point @ rotation + theirs[:, 3]
    ours = convert(theirs, source="pytorch3d")
    assert ours[:, :3] @ point + ours[:, 3] == pytest.approx([-x, -y, z])


@pytest.mark.parametrize("source", CONVENTIONS)
@pytest.mark.parametrize("target", CONVENTIONS)
def test_there_and_back(source, target):
    dice = np.random.default_rng(1)
    rotation = np.linalg.qr(dice.normal(size=(2, 5, 3, 3)))[0]
    rotation *= np.linalg.det(rotation)[..., None, None]
    given = np.concatenate([rotation, dice.normal(size=(2, 5, 3, 1))], axis=-1)
    there = convert(given, source=source, target=target)
    assert convert(there, source=target, target=source) == pytest.approx(given)
    assert (np.abs(there - given).max() < 1e-9) == (source == target)
    # mirror images of rotations would show here
    assert np.linalg.det(there[..., :3]) == pytest.approx(np.ones((2, 5)))


def test_a_four_by_four_matrix_will_do(camera):
    square = np.vstack([camera, [0, 0, 0, 1]])
    assert convert(np.linalg.inv(square), source="opencv_pose") == pytest.approx(camera)
    assert inverse(camera) == pytest.approx(np.linalg.inv(square)[:3])
    assert compose(camera, inverse(camera)) == pytest.approx(np.eye(4)[:3])


def test_unproject_is_the_reverse_of_project(camera):
    lens = np.array([[90.0, 0, 31], [0, 110, 22], [0, 0, 1]])
    depth = np.random.default_rng(2).uniform(1, 9, (40, 60))
    pixel, z = project(unproject(depth, lens, camera), lens, camera)
    v, u = np.indices(depth.shape)
    assert z == pytest.approx(depth) and pixel == pytest.approx(np.stack([u, v], -1) + 0.5)


def test_mistakes(camera):
    with pytest.raises(ValueError, match="'colmap' is unknown; choose from opencv, opencv_pose, opengl"):
        convert(camera, source="colmap")
    with pytest.raises(ValueError, match=r"shape \(3, 3\)"):
        convert(camera[:, :3], source="opencv")
