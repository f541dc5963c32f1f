"""The symmetry checks themselves, on functions whose symmetries are known: they must pass and they must fail."""

import properties
import pytest
import torch
from torch.nn.functional import avg_pool2d, conv2d, pad, scaled_dot_product_attention


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def circular(x: torch.Tensor, *, stride: int = 1) -> torch.Tensor:
    return conv2d(pad(x, (1, 1, 1, 1), mode="circular"), draw(4, 2, 3, 3), stride=stride)


def attention(x: torch.Tensor) -> torch.Tensor:
    return scaled_dot_product_attention(x @ draw(6, 6), x @ draw(6, 6, seed=1), x)


def turn(g: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    return x @ g.mT


def test_rotations_are_a_sample_of_the_group():
    found = properties.rotations(50)
    eye = torch.eye(3, dtype=torch.float64)
    torch.testing.assert_close(found.mT @ found, eye.expand(50, 3, 3))
    assert (torch.linalg.det(found) > 0).all()
    assert torch.equal(found[0], eye) and torch.equal(found[-1], found[1].mT)
    assert found[1:-1].mean(0).abs().max() < 0.3


def test_invariance_and_equivariance():
    x, group = draw(7, 3), properties.rotations(6)
    properties.assert_invariant(lambda x: torch.cdist(x, x), group, turn, x)
    properties.assert_equivariant(lambda x: torch.linalg.cross(x, x.roll(1, 0)), group, turn, turn, x)
    properties.assert_closed(lambda x: x.roll(1, 0), [*group] * 10, turn, turn, x)
    properties.assert_not_invariant(lambda x: x, group[1], turn, x)
    with pytest.raises(AssertionError, match="element 1"):
        properties.assert_invariant(lambda x: x.abs().sum(-1), group, turn, x)
    with pytest.raises(AssertionError, match="after 2 steps"):
        properties.assert_closed(lambda x: x.square(), group[:2], turn, turn, x)
    with pytest.raises(AssertionError, match="only 0"):
        properties.assert_not_invariant(lambda x: x.norm(), group[0], turn, x)


def test_nan_is_never_equal():
    with pytest.raises(AssertionError, match="not finite"):
        properties.assert_invariant(lambda x: x * torch.nan, [0], lambda _, x: x, draw(3))


def test_permutation():
    x = draw(2, 5, 6)
    properties.assert_permutes(attention, x, dim=1, out=1)
    properties.assert_permutes(lambda x: x.mean(1), x, dim=1)
    with pytest.raises(AssertionError):
        properties.assert_permutes(lambda x: attention(x + torch.arange(5.0)[:, None]), x, dim=1, out=1)


def test_what_a_mask_hides():
    x, mask = draw(2, 5, 6), torch.arange(5)[:, None] < 3
    properties.assert_ignores(lambda x, mask: torch.where(mask, x, 0).sum(1), x, mask)
    with pytest.raises(AssertionError, match="hides"):
        properties.assert_ignores(lambda x, mask: x.sum(1), x, mask)


def test_shifts_and_strides():
    x = draw(1, 2, 8, 12)
    properties.assert_shifts(circular, x)
    properties.assert_shifts(lambda x: circular(x, stride=2), x, stride=2)
    with pytest.raises(AssertionError, match="shift by 1"):
        properties.assert_shifts(lambda x: circular(x, stride=1)[..., ::2, ::2].repeat_interleave(2, -1), x)
    with pytest.raises(AssertionError):
        properties.assert_shifts(lambda x: conv2d(pad(x, (1, 1, 1, 1)), draw(4, 2, 3, 3)), x)
    with pytest.raises(AssertionError, match="unnoticed"):
        properties.assert_shifts(lambda x: x.mean((-1, -2), keepdim=True).expand(1, 2, 4, 6), x, stride=2)


def test_the_square_has_eight_symmetries():
    x = torch.arange(9.0).reshape(3, 3)
    assert len({tuple(properties.d4(k, x).flatten().tolist()) for k in range(8)}) == 8
    pool = lambda x: avg_pool2d(x, 2)  # noqa: E731
    properties.assert_equivariant(pool, range(8), properties.d4, properties.d4, draw(1, 2, 8, 8))
    # a filter that prefers rows is not symmetric, and its average over the square is
    rows = lambda x: (x * torch.arange(8.0)[:, None]).sum((-1, -2))  # noqa: E731
    x = draw(1, 2, 8, 8)
    assert properties.reynolds_gap(rows, range(8), properties.d4, x) > 0.1
    averaged = properties.reynolds(rows, range(8), properties.d4)
    properties.assert_invariant(averaged, range(8), properties.d4, x)
    assert properties.reynolds_gap(averaged, range(8), properties.d4, x) < 1e-12


def test_cameras_follow_their_points():
    """A camera of the moved world sees the moved points where it saw them, larger by the scale."""
    camera, points = properties.rigid(4, seed=5)[2:, :3], draw(9, 3)
    for g in properties.rigid(5, similar=True):
        scale = torch.linalg.det(g[:3, :3]) ** (1 / 3)
        before = points @ camera[..., :3].mT + camera[..., None, :, 3]
        there = properties.reframe(g, camera)
        after = properties.move(g, points) @ there[..., :3].mT + there[..., None, :, 3]
        torch.testing.assert_close(after, scale * before)


def test_smooth_functions_hardly_notice_a_smooth_warp():
    """On a slow wave a mean of blocks moves with the warp's size; the sign of single pixels of noise does not."""
    y, across = torch.meshgrid(torch.linspace(0, 3, 32), torch.linspace(0, 3, 32), indexing="ij")
    wave = torch.sin(y + across)[None, None].double()
    blocks = lambda x: avg_pool2d(x, 8)  # noqa: E731
    assert 0 < properties.warp_rate(blocks, wave) < 1
    assert properties.warp_rate(torch.sign, draw(1, 1, 32, 32)) > 5
