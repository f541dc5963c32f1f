"""Hedgehog: its features, and weights worked out by hand."""

import math

import pytest
import torch

from gnomon.kernels.linear.base import two_softmaxes
from gnomon.kernels.linear.hedgehog import hedgehog
from gnomon.kernels.mask import CAUSAL

IMPLS = ["reference", "recurrent", "chunk"]


def draw(*size: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("impl", IMPLS)
def test_by_hand(impl):
    """Features of (ln 3, 0): 3/4, 1/4, 1/4, 3/4. Weights: 5/4 with itself, 3/4 with (0, ln 3)."""
    side = torch.tensor([[math.log(3), 0.0], [0.0, math.log(3)]], dtype=torch.float64)[None, :, None]
    v = torch.tensor([8.0, 16.0], dtype=torch.float64).reshape(1, 2, 1, 1)
    o, _ = hedgehog(side, side, v, mask=CAUSAL, impl=impl)
    torch.testing.assert_close(o.flatten(), torch.tensor([8.0, 13.0], dtype=torch.float64))
    o, _ = hedgehog(side, side, v, impl=impl)
    torch.testing.assert_close(o.flatten(), torch.tensor([11.0, 13.0], dtype=torch.float64))


@pytest.mark.parametrize("joint, total", [(False, 2.0), (True, 1.0)])
def test_features_are_positive_and_sum(joint, total):
    features = two_softmaxes(3 * draw(7, 5), joint)
    assert features.shape == (7, 10) and bool((features > 0).all())
    torch.testing.assert_close(features.sum(-1), torch.full((7,), total, dtype=torch.float64))


def test_the_two_normalisations_differ():
    """In the weight of the halves: per half both count one, jointly the one with the larger peak wins."""
    y = torch.tensor([2.0, 0.0, 0.0], dtype=torch.float64)
    halves, joint = two_softmaxes(y, False), two_softmaxes(y, True)
    assert halves[:3].sum().item() == pytest.approx(1.0) == halves[3:].sum().item()
    e = math.exp
    assert joint[:3].sum().item() == pytest.approx((e(4) + 2) / (e(4) + 4 + e(-4)))


@pytest.mark.parametrize("joint", [False, True])
def test_larger_maps_are_spikier(joint):
    """The entropy of the weights falls when the features' inputs grow."""
    q, k = draw(1, 1, 1, 8), draw(1, 40, 1, 8, seed=1)
    entropies = []
    for size in (0.5, 1.0, 2.0, 4.0):
        # values that are the unit vectors: the outputs are the weights
        weights, _ = hedgehog(size * q, size * k, torch.eye(40).double()[None, :, None], joint=joint)
        entropies.append(torch.special.entr(weights).sum().item())
    assert entropies == sorted(entropies, reverse=True) and entropies[0] - entropies[-1] > 0.5


@pytest.mark.parametrize("impl", IMPLS)
def test_opposite_features_stay_finite(impl):
    """Weights far below what float32 can hold beside one: still an average, with finite gradients."""
    y = torch.zeros(1, 3, 1, 4)
    y[..., 0] = 500.0
    q, v = y.clone().requires_grad_(), torch.tensor([1.0, 2.0, 3.0]).reshape(1, 3, 1, 1)
    turned = y.roll(1, -1).requires_grad_()
    o, _ = hedgehog(q, turned, v, mask=CAUSAL, impl=impl)
    torch.testing.assert_close(o.flatten(), torch.tensor([1.0, 1.5, 2.0]))
    assert all(bool(g.isfinite().all()) for g in torch.autograd.grad(o.sum(), (q, turned)))
