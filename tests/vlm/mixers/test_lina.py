"""LINA: the layer from all pairs of tokens, gates that take a token out, and tables that fit any grid."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from gnomon.vlm.layout import TokenLayout
from gnomon.vlm.mixers.base import Attention
from gnomon.vlm.mixers.lina import LINA
from gnomon.vlm.vision_mixing import Grid, layout_of


def made(side: int, prefix: int) -> LINA:
    """Heads as wide as the layer, which the convolution of its input asks for."""
    torch.manual_seed(0)
    maps = {f"{name}_proj": torch.nn.Linear(24, 24) for name in "qkvo"}
    mixer = LINA(side=side)
    mixer.setup(Attention(maps, 24, 4, 4, 6, 6**-0.5, 0, 1, prefix=prefix))
    return mixer


def layout(rows: int, columns: int, prefix: int) -> TokenLayout:
    return layout_of(2, Grid(prefix, (rows, columns)), torch.device("cpu"))


def stirred(mixer: LINA) -> LINA:
    with torch.no_grad():
        for parameter in mixer.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return mixer


def pairs(mixer: LINA, x: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """(B,T,24) from the matrix of weights; gates (4,T)."""
    q, k, v = (getattr(mixer, f"{n}_proj")(x).unflatten(2, (4, 6)).transpose(1, 2) for n in "qkv")
    weights = (q.relu() + 1e-6) @ (k.relu() + 1e-6).mT * keys[:, None]
    weights = weights / (weights.sum(-1, keepdim=True) + x.shape[1] * 1e-6)
    return (weights @ (values[..., None] * v)).transpose(1, 2).flatten(2)


@torch.no_grad()
def test_the_rule_as_a_matrix():
    mixer, x = stirred(made(4, 1)), torch.randn(2, 17, 24)
    # a grid of the tables' own size: nothing is stretched
    found, memory = mixer(x, layout(4, 4, 1))
    assert memory is None
    keys, values = (
        torch.cat([getattr(mixer, f"first_{n}"), getattr(mixer, f"gate_{n}")[0].flatten(1)], 1)
        for n in ("keys", "values")
    )
    image = F.pad(x[:, 1:].unflatten(1, (4, 4)), (0, 0, 2, 2, 2, 2))
    local = sum(image[:, i : i + 4, j : j + 4] * mixer.local[:, 0, i, j] for i in range(5) for j in range(5))
    o = pairs(mixer, x, keys, values)
    o[:, 1:] += local.flatten(1, 2)
    torch.testing.assert_close(found, mixer.o_proj(o), atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_it_begins_without_gates_and_convolution_on_any_grid():
    mixer = made(3, 2)
    for rows, columns in ((5, 3), (2, 8)):
        x = torch.randn(2, 2 + rows * columns, 24)
        found, _ = mixer(x, layout(rows, columns, 2))
        open_ = torch.ones(4, x.shape[1])
        torch.testing.assert_close(found, mixer.o_proj(pairs(mixer, x, open_, open_)), atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_a_key_whose_gate_is_zero_counts_for_nothing():
    mixer, other, x = made(3, 1), made(3, 0), torch.randn(2, 10, 24)
    for one in (mixer, other):
        # sums of weights far above the epsilon, which counts once per token
        one.q_proj.bias.add_(2)
    mixer.first_keys.zero_()
    found, _ = mixer(x, layout(3, 3, 1))
    without, _ = other(x[:, 1:], layout(3, 3, 0))
    torch.testing.assert_close(found[:, 1:], without, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("prefix", [0, 3])
def test_all_parameters_learn_where_tables_are_stretched(prefix):
    mixer = stirred(made(2, prefix))
    mixer(torch.randn(2, prefix + 15, 24), layout(5, 3, prefix))[0].square().sum().backward()
    assert all(float(p.grad.abs().sum()) > 0 for p in mixer.parameters())


def test_what_does_not_fit_is_refused(seated):
    with pytest.raises(ValueError, match="side 0"):
        LINA(side=0)
    with pytest.raises(ValueError, match="width of 20 beside heads of 24"):
        seated(LINA(), keys=4)
