"""NaLaFormer: opposite signs never meet, and the norm of a query sharpens what it sees."""

import torch

from gnomon.kernels.linear.nalaformer import nalaformer
from gnomon.kernels.mask import CAUSAL


def seen(q, k, **options):
    """The weights themselves: one-hot values."""
    n = k.shape[1]
    return nalaformer(q, k, torch.eye(n, dtype=k.dtype).expand(1, 1, n, n).transpose(1, 2), **options)[0]


def draw(*size: int):
    torch.manual_seed(0)
    return torch.randn(*size, dtype=torch.float64)


def test_by_hand():
    """q = (3, -4): norm 5, direction (0.6, -0.8); k = (1, 2) and (-1, -1). Only like signs meet."""
    q = torch.tensor([[3.0, -4.0]], dtype=torch.float64).reshape(1, 1, 1, 2)
    k = torch.tensor([[1.0, 2.0], [-1.0, -1.0]], dtype=torch.float64).reshape(1, 2, 1, 2)
    p = 3 * (0.5 + torch.tanh(torch.tensor(5.0, dtype=torch.float64)))
    first, second = 0.6**p * 1**3, 0.8**p * 1**3
    torch.testing.assert_close(
        seen(q, k).flatten(), torch.stack([first, second]) / (first + second), atol=1e-5, rtol=1e-5
    )


def test_opposite_signs_weigh_exactly_nothing():
    q, k = draw(1, 3, 1, 4).abs(), -draw(1, 5, 1, 4).abs()
    k[:, 2] *= -1
    weights = seen(q, k)
    assert bool((weights >= 0).all())
    assert weights[0, :, 0].nonzero()[:, 1].unique().tolist() == [2]


def test_entropy_falls_as_the_query_grows():
    q, k = draw(1, 1, 1, 4), draw(1, 8, 1, 4)
    entropies = []
    for norm in (0.1, 0.5, 1.0, 2.0):
        weights = seen(norm * q / q.norm(), k).flatten()
        entropies.append(torch.special.entr(weights).sum().item())
    assert entropies == sorted(entropies, reverse=True) and entropies[0] - entropies[-1] > 0.05


def test_the_length_of_all_keys_cancels():
    q, k = draw(1, 4, 1, 4), draw(1, 6, 1, 4)
    torch.testing.assert_close(seen(q, 3 * k, eps=1e-12), seen(q, k, eps=1e-12))


def test_a_query_of_zero_has_finite_gradients():
    q, k, v = (draw(1, 5, 1, 4).requires_grad_() for _ in range(3))
    with torch.no_grad():
        q[:, 1] = 0
    for mask in (None, CAUSAL):
        gradients = torch.autograd.grad(nalaformer(q, k, v, mask=mask)[0].square().sum(), (q, k, v))
        assert all(bool(g.isfinite().all()) for g in gradients)
