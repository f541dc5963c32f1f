"""LINA: what its two gates do to a token."""

import pytest
import torch

from gnomon.kernels.linear.lina import lina

TOKENS = 6


def draw():
    torch.manual_seed(0)
    return [torch.randn(1, TOKENS, 2, 4, dtype=torch.float64) for _ in range(3)]


def ones():
    return torch.ones(1, TOKENS, dtype=torch.float64)


def test_equals_the_matrix():
    q, k, v = draw()
    gate_k, gate_v = torch.rand(1, TOKENS, 2, dtype=torch.float64), torch.randn(1, TOKENS, 2, dtype=torch.float64)
    o, _ = lina(q, k, v, gate_k=gate_k, gate_v=gate_v)
    for head in range(2):
        f_q, f_k = (x[0, :, head].clamp(min=0) + 1e-6 for x in (q, k))
        scores = f_q @ f_k.T * gate_k[0, :, head] / TOKENS
        truth = scores @ (gate_v[0, :, head, None] * v[0, :, head]) / (scores.sum(-1, keepdim=True) + 1e-6)
        torch.testing.assert_close(o[0, :, head], truth)


def test_gates_of_one_are_no_gates():
    q, k, v = draw()
    torch.testing.assert_close(lina(q, k, v, gate_k=ones(), gate_v=ones())[0], lina(q, k, v)[0])


def test_key_gate_of_zero_removes_the_token():
    q, k, v = draw()
    gate = ones()
    gate[:, 2] = 0
    rest = [0, 1, 3, 4, 5]
    torch.testing.assert_close(lina(q, k, v, gate_k=gate, eps=0.0)[0], lina(q, k[:, rest], v[:, rest], eps=0.0)[0])


def test_value_gate_of_zero_keeps_its_place_in_the_sum():
    """Over values of one, what is missing from one is exactly the weight of the token."""
    q, k, _ = draw()
    gate = ones()
    gate[:, 2] = 0
    o, _ = lina(q, k, torch.ones_like(q), gate_v=gate, eps=0.0)
    one_hot = torch.zeros_like(q)
    one_hot[:, 2] = 1
    torch.testing.assert_close(1 - o, lina(q, k, one_hot, eps=0.0)[0])
    assert bool((o < 1).any())


def test_gradients_of_the_gates():
    """By the chain rule they are the gradients of the features and values, projected on these."""
    q, k, v = (x.requires_grad_() for x in draw())
    gate = ones().requires_grad_()
    o, _ = lina(q, k, v, gate_v=gate)
    direction = torch.randn_like(o)
    of_gate, of_v = torch.autograd.grad((o * direction).sum(), (gate, v))
    torch.testing.assert_close(of_gate, (of_v * v).sum((-1, -2)).detach())


def test_gates_of_another_shape_are_refused():
    q, k, v = draw()
    for gate in (torch.ones(TOKENS), torch.ones(1, TOKENS, 2, 1)):
        with pytest.raises(ValueError, match=r"^lina: gate_k has shape .*; give \(batch, keys\) or"):
            lina(q, k, v, gate_k=gate)
