import math

import properties
import pytest
import torch

from gnomon.vlm.multiview.ppf import point_pair_features


def oriented(count: int = 12) -> torch.Tensor:
    """(count,2,3): points and their normals."""
    x = torch.randn(count, 2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x[:, 1] /= x[:, 1].norm(dim=-1, keepdim=True)
    return x


def all_pairs(x: torch.Tensor) -> torch.Tensor:
    points, normals = x.unbind(-2)
    return point_pair_features(points[:, None], normals[:, None], points[None], normals[None])


@pytest.fixture
def carry():
    def move(g: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        points, normals = x.unbind(-2)
        g = g.to(x.dtype)
        return torch.stack([properties.move(g, points), normals @ g[:3, :3].mT], dim=-2)

    return move


def test_by_hand():
    p, up, q = torch.zeros(3), torch.tensor([0.0, 0, 1]), torch.tensor([0.0, 3, 3])
    found = point_pair_features(p, up, q, torch.tensor([0.0, -1, 0]))
    torch.testing.assert_close(found, torch.tensor([3 * math.sqrt(2), 0.25, 0.75, 0.5]))


@pytest.mark.parametrize(("dtype", "atol"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
def test_rigid_motions_change_nothing(carry, dtype, atol):
    x, group = oriented().to(dtype), properties.rigid(6)
    properties.assert_invariant(all_pairs, group, carry, x, atol=atol)
    properties.assert_closed(all_pairs, [*group] * 5, carry, lambda _, y: y, x, atol=atol)


def test_a_mirror_image_looks_the_same_but_a_stretched_one_does_not(carry):
    stretch = torch.eye(4, dtype=torch.float64)
    stretch[0, 0] = 2
    properties.assert_not_invariant(all_pairs, stretch, carry, oriented())
    mirror = torch.diag(torch.tensor([-1.0, 1, 1, 1], dtype=torch.float64))
    properties.assert_invariant(all_pairs, [mirror], carry, oriented())


def test_ranges_and_self_pairs():
    found = all_pairs(oriented())
    assert (found[..., 1:] >= 0).all() and (found[..., 1:] <= 1).all()
    assert (found.diagonal()[:3] == 0).all()
    # the normal with itself: a x a is zero up to fused multiplication
    assert found.diagonal()[3].max() < 1e-16


def test_gradients_are_finite_for_self_pairs_and_missing_normals():
    x = oriented()
    x[0, 1] = 0
    x.requires_grad_()
    all_pairs(x).sum().backward()
    assert x.grad.isfinite().all()
