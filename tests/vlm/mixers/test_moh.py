"""MoH: the layer head after head, the router in plain loops, and the balance's gradient."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from gnomon.vlm.layout import Kind, TokenLayout
from gnomon.vlm.mixers.moh import MoH


def heads_of(mixer, x):
    """(B,T,4,6): softmax attention by torch."""
    q, k, v = (getattr(mixer, f"{n}_proj")(x).unflatten(2, (-1, 6)).transpose(1, 2) for n in "qkv")
    return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True).transpose(1, 2)


@pytest.mark.parametrize("shared", [0.0, 0.25, 0.5])
@torch.no_grad()
def test_the_rule_token_by_token(seated, x, shared):
    mixer = seated(MoH(shared=shared, active=0.5))
    found, _ = mixer(x, TokenLayout.text(2, 9))
    o, always = heads_of(mixer, x), int(4 * shared)
    for row, time in torch.cartesian_prod(torch.arange(2), torch.arange(9)).tolist():
        token, weights = x[row, time], []
        if always:
            between = 2 * (mixer.gates["between"].weight @ token).softmax(0)
            within = (mixer.gates["within"].weight @ token).softmax(0) if always > 1 else torch.ones(1)
            weights = (between[0] * always * within).tolist()
        chances = (mixer.gates["routed"].weight @ token).softmax(0)
        best = sorted(chances.tolist())[-2:]
        routed = [2 * c / sum(best) if c in best else 0.0 for c in chances.tolist()]
        weights += [w * (float(between[1]) if always else 1.0) for w in routed]
        expected = mixer.o_proj((torch.tensor(weights)[:, None] * o[row, time]).flatten())
        torch.testing.assert_close(found[row, time], expected, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_all_heads_at_equal_chances_are_softmax_attention(seated, x):
    mixer = seated(MoH(shared=0.5, active=0.5))
    for linear in mixer.gates.values():
        linear.weight.zero_()
    found, _ = mixer(x, TokenLayout.text(2, 9))
    torch.testing.assert_close(found, mixer.o_proj(heads_of(mixer, x).flatten(2)), atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_by_norm_the_longest_query_is_on(seated, x):
    mixer = seated(MoH(router="norm"))
    found, _ = mixer(x, TokenLayout.text(2, 9))
    assert not hasattr(mixer, "gates")
    length = mixer.q_proj(x).view(2, 9, 4, 6).square().sum(-1)
    third = (length[..., 2] > length[..., 3]).float()
    on = torch.stack([torch.ones(2, 9), torch.ones(2, 9), third, 1 - third], -1)
    expected = mixer.o_proj((on[..., None] * heads_of(mixer, x)).flatten(2))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


def test_the_balance_has_its_gradient_and_padding_none(seated, x):
    mixer = seated(MoH(shared=0.5, active=0.25, balance=0.4), depth=2).train()
    layout = TokenLayout.text(2, 9)
    layout.kind[1, 5:] = Kind.PAD
    router = mixer.gates["routed"].weight
    found, _ = mixer(x, layout)
    # of the one that is chosen the weight is 1, whatever its chance: what remains is the balance
    (gradient,) = torch.autograd.grad(found.square().sum(), router)
    chances = (torch.cat([x[0], x[1, :5]]) @ router.T).softmax(1)
    choice = F.one_hot(chances.argmax(1), 2).float()
    loss = 4 * (chances.mean(0) * choice.mean(0)).mean()
    torch.testing.assert_close(gradient, torch.autograd.grad(0.4 / 2 * loss, router)[0], atol=1e-5, rtol=1e-4)
    (gradient,) = torch.autograd.grad(mixer.eval()(x, layout)[0].square().sum(), router)
    assert float(gradient.abs().max()) < 1e-5


@torch.no_grad()
def test_decoding_remembers_keys_and_values(seated, x):
    mixer = seated(MoH())
    whole, _ = mixer(x, TokenLayout.text(2, 9))
    found, memory = mixer(x[:, :6], TokenLayout.text(2, 6), {})
    torch.testing.assert_close(found, whole[:, :6], atol=1e-5, rtol=1e-4)
    for t in range(6, 9):
        found, memory = mixer(x[:, t : t + 1], TokenLayout.text(2, 1, start=t), memory)
        torch.testing.assert_close(found[:, 0], whole[:, t], atol=1e-5, rtol=1e-4)
    assert memory["k"].shape == (2, 9, 2, 6)


@torch.no_grad()
def test_a_window_stays_in_decoding(seated, x):
    mixer = seated(MoH(), window=3)
    _, memory = mixer(x[:, :8], TokenLayout.text(2, 8), {})
    found, _ = mixer(x[:, 8:], TokenLayout.text(2, 1, start=8), memory)
    last, _ = seated(MoH())(x[:, 6:], TokenLayout.text(2, 3))
    torch.testing.assert_close(found[:, 0], last[:, -1], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    "options, match",
    [({"router": "hash"}, "hash"), ({"shared": 0.5, "active": 0.6}, "0.6"), ({"balance": -1}, "balance -1")],
)
def test_wrong_options_are_refused(options, match):
    with pytest.raises(ValueError, match=match):
        MoH(**options)


def test_shares_that_leave_no_head_are_refused(seated):
    with pytest.raises(ValueError, match="0 of 2 routed"):
        seated(MoH(active=0.1))
