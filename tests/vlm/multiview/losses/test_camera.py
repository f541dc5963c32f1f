import math

import properties
import pytest
import torch

from gnomon.vlm.multiview.losses.camera import aligned_quaternion, log_scale, pose_rounds, reprojection, rigid

YES = torch.ones(1, 2, dtype=torch.bool)
NO = torch.zeros(1, 2, dtype=torch.bool)
NAN = float("nan")


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def cameras():
    """(1,2,3,4) by seed."""

    def make(seed: int) -> torch.Tensor:
        return torch.cat([properties.rotations(3, seed=seed)[None, 1:], draw(1, 2, 3, 1, seed=seed)], dim=-1)

    return make


def test_rounds_weigh_by_powers():
    truth = torch.zeros(1, 2, 9)
    off = truth.clone()
    off[..., 0] = 3.0
    # one of three translation numbers is 3 off: 1 per round
    assert pose_rounds([off], truth, YES) == 1
    found = pose_rounds([off, off, off, truth], truth, YES)
    torch.testing.assert_close(found, torch.tensor(0.6**3 + 0.6**2 + 0.6))


def test_weights_of_the_parts_and_the_limit():
    truth = torch.zeros(1, 2, 9)
    assert pose_rounds([torch.cat([truth[..., :3], torch.full((1, 2, 4), 2.0), truth[..., 7:]], -1)], truth, YES) == 2
    assert pose_rounds([torch.cat([truth[..., :7], torch.full((1, 2, 2), 2.0)], -1)], truth, YES) == 1
    assert pose_rounds([torch.cat([torch.full((1, 2, 3), 1e6), truth[..., 3:]], -1)], truth, YES) == 100


def test_masked_views_do_not_count():
    truth, half = torch.zeros(1, 2, 9), torch.tensor([[True, False]])
    guess = torch.ones(1, 2, 9)
    guess[0, 1] = NAN
    guess.requires_grad_()
    loss = pose_rounds([guess], truth, half)
    loss.backward()
    assert loss == 2.5 and guess.grad.isfinite().all() and (guess.grad[0, 1] == 0).all()
    with pytest.raises(ValueError, match="at least 1"):
        pose_rounds([], truth, half)


def test_rigid_by_hand():
    angle = 0.4
    truth = torch.eye(3, 4).expand(1, 2, 3, 4)
    guess = truth.clone()
    guess[0, 0, :2, :2] = torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    guess[0, 1, :, 3] = torch.tensor([0.0, 3.0, 4.0])
    # an angle of 0.4 in one view, Huber(5) = 4.5 in the other
    torch.testing.assert_close(rigid(guess, truth, YES), torch.tensor((0.4 + 4.5) / 2))
    assert rigid(truth, truth, YES) == 0


def test_rigid_does_not_depend_on_the_camera_frame(cameras):
    """A turn of both camera frames (a rigid motion on the left) moves both alike."""
    both = torch.stack([cameras(0), cameras(1)])
    left = lambda g, x: torch.cat([g[:3, :3] @ x[..., :3], g[:3, :3] @ x[..., 3:] + g[:3, 3:]], dim=-1)  # noqa: E731
    properties.assert_invariant(lambda x: rigid(*x, YES), properties.rigid(5), left, both, atol=1e-10)


def test_sign_of_a_quaternion_is_a_gauge():
    q, truth = draw(1, 2, 4), draw(1, 2, 4, seed=1)
    loss = lambda q: aligned_quaternion(q, truth, YES)  # noqa: E731
    properties.assert_invariant(loss, [-1.0], lambda g, q: g * q, q, atol=0)
    assert aligned_quaternion(-truth, truth, YES) == 0
    by_hand = torch.minimum((q - truth).norm(dim=-1), (q + truth).norm(dim=-1)).mean()
    torch.testing.assert_close(loss(q), by_hand)


@pytest.fixture
def scene(cameras) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Points (1,2,5,3) in front of two cameras, their pixels, extrinsics, intrinsics."""
    extrinsics = cameras(0)
    lens = torch.tensor([[50.0, 0, 32], [0, 60, 24], [0, 0, 1]], dtype=torch.float64).expand(1, 2, 3, 3)
    seen = draw(1, 2, 5, 3) * 0.3 + torch.tensor([0.0, 0, 4.0], dtype=torch.float64)
    points = (seen - extrinsics[..., None, :, 3]) @ extrinsics[..., :3]
    projected = seen @ lens.mT
    return points, projected[..., :2] / projected[..., 2:], extrinsics, lens


def test_reprojection(scene):
    points, pixels, extrinsics, lens = scene
    mask = torch.ones(1, 2, 5, dtype=torch.bool)
    assert reprojection(points, pixels, extrinsics, lens, mask) < 1e-20
    # half a pixel is squared, 5 pixels (3-4-5) are linear
    for shift, cost in (((0.5, 0.0), 0.125), ((3.0, 4.0), 4.5)):
        moved = pixels + torch.tensor(shift, dtype=torch.float64)
        found = reprojection(points, moved, extrinsics, lens, mask)
        torch.testing.assert_close(found, torch.tensor(cost, dtype=torch.float64))


def test_reprojection_does_not_depend_on_the_world_frame(scene):
    points, pixels, extrinsics, lens = scene
    mask = torch.ones(1, 2, 5, dtype=torch.bool)
    wanted = reprojection(points, pixels + 2, extrinsics, lens, mask)
    for g in properties.rigid(5, similar=True):
        there, seen_from = properties.move(g, points), properties.reframe(g, extrinsics)
        torch.testing.assert_close(reprojection(there, pixels + 2, seen_from, lens, mask), wanted)


def test_points_behind_the_camera_do_not_count(scene):
    points, pixels, extrinsics, lens = scene
    mask = torch.ones(1, 2, 5, dtype=torch.bool)
    centre = -(extrinsics[..., :3].mT @ extrinsics[..., 3:])[..., 0]
    points[:, :, 0] = 2 * centre - points[:, :, 0]
    points[:, :, 1] = centre
    points.requires_grad_()
    loss = reprojection(points, pixels, extrinsics, lens, mask)
    loss.backward()
    assert loss < 1e-20 and points.grad.isfinite().all()


def test_log_scale():
    found = log_scale(torch.tensor([2.0, 1.0, NAN]), torch.tensor([1.0, 2.0, 1.0]), torch.tensor([True, True, False]))
    torch.testing.assert_close(found, torch.tensor(math.log(2)))


def test_nothing_valid_is_zero_with_a_graph(scene, cameras):
    points, pixels, _, lens = scene
    guess = cameras(0).requires_grad_()
    encoding = draw(1, 2, 9).requires_grad_()
    loss = (
        pose_rounds([encoding, encoding], torch.full((1, 2, 9), NAN), NO)
        + rigid(guess, torch.full((1, 2, 3, 4), NAN), NO)
        + aligned_quaternion(encoding[..., 3:7], torch.zeros(1, 2, 4), NO)
        + reprojection(points, pixels, guess, lens, torch.zeros(1, 2, 5, dtype=torch.bool))
        + log_scale(encoding[..., 0], torch.full((1, 2), NAN), NO)
    )
    loss.backward()
    assert loss == 0 and (guess.grad == 0).all() and (encoding.grad == 0).all()
