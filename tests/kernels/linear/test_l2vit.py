"""L2ViT on both sides of its clamp."""

import pytest
import torch

from gnomon.kernels.linear.l2vit import l2vit


def draw():
    torch.manual_seed(0)
    return [torch.rand(1, 6, 2, 4, dtype=torch.float64) for _ in range(3)]


def test_above_the_clamp_the_weights_sum_to_the_temperature():
    q, k, _ = draw()
    temperature = torch.tensor([0.5, 3.0], dtype=torch.float64)
    o, _ = l2vit(q, k, torch.ones_like(q), temperature=temperature, least=1e-3)
    torch.testing.assert_close(o, temperature[:, None].expand_as(o))


def test_below_the_clamp_it_is_linear_without_a_denominator():
    """The paper's 100 is far away from six tokens: no gradient flows through the sum."""
    q, k, v = (x.requires_grad_() for x in draw())
    o, _ = l2vit(q, k, v, scale=0.5)
    plain = 0.5 * torch.einsum("bqhd,bkhd,bkhv->bqhv", q, k, v) / 100
    torch.testing.assert_close(o, plain)
    ours, theirs = (torch.autograd.grad(x.square().sum(), (q, k, v)) for x in (o, plain))
    torch.testing.assert_close(ours, theirs)


def test_a_negative_query_sees_nothing():
    q, k, v = draw()
    assert not bool(l2vit(-q, k, v)[0].any())


def test_gradient_of_the_temperature():
    q, k, v = draw()
    temperature = torch.tensor([0.7, 1.3], dtype=torch.float64, requires_grad=True)
    o, _ = l2vit(q, k, v, temperature=temperature)
    direction = torch.randn_like(o)
    (g,) = torch.autograd.grad((o * direction).sum(), temperature)
    torch.testing.assert_close(g, (o * direction).sum((0, 1, 3)).detach() / temperature.detach())


def test_refusals():
    q, k, v = draw()
    with pytest.raises(ValueError, match="l2vit: least 0"):
        l2vit(q, k, v, least=0)
    with pytest.raises(ValueError, match=r"l2vit: temperature has shape \(3,\); give \(2,\)"):
        l2vit(q, k, v, temperature=torch.ones(3, dtype=torch.float64))
