"""Hedgehog: the layer as the matrix of its weights, in a model that had softmax attention, and what it learns."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from gnomon.vlm.layout import TokenLayout
from gnomon.vlm.mixers.base import lessons
from gnomon.vlm.mixers.hedgehog import Hedgehog


def turned(q: Tensor, k: Tensor, tables: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Rotary positions on neighbouring channels, which is enough for a test."""
    cos, sin = tables

    def turn(x: Tensor) -> Tensor:
        even, odd = x[..., ::2], x[..., 1::2]
        return torch.stack([even * cos - odd * sin, even * sin + odd * cos], -1).flatten(-2)

    return turn(q), turn(k)


@pytest.fixture
def tables() -> tuple[Tensor, Tensor]:
    angles = torch.arange(9.0)[:, None, None] * torch.tensor([1.0, 0.3, 0.1])
    return angles.cos(), angles.sin()


@pytest.mark.parametrize("joint", [False, True])
@torch.no_grad()
def test_the_rule_as_a_matrix(seated, x, tables, joint):
    mixer = seated(Hedgehog(joint=joint), rotate=turned)
    found, _ = mixer(x, TokenLayout.text(2, 9), tables=tables)
    q, k, v = (getattr(mixer, f"{n}_proj")(x).view(2, 9, -1, 6) for n in "qkv")
    q, k = turned(q, k, tables)
    outputs = []
    for head in range(4):
        sides = []
        for feature_map, y in ((mixer.q_map, q[:, :, head]), (mixer.k_map, k[:, :, head // 2])):
            y = y @ feature_map.weight[head].T + feature_map.bias[head]
            both = (
                torch.cat([2 * y, -2 * y], -1).softmax(-1)
                if joint
                else torch.cat([y.softmax(-1), (-y).softmax(-1)], -1)
            )
            sides.append(both)
        weights = (sides[0] @ sides[1].mT).tril()
        outputs.append(weights / weights.sum(-1, keepdim=True) @ v[:, :, head // 2])
    torch.testing.assert_close(found, mixer.o_proj(torch.cat(outputs, -1)), atol=1e-5, rtol=1e-4)


def test_it_learns_to_answer_as_softmax_does(seated, x, tables):
    """Attention transfer: the layer answers by softmax meanwhile, only the maps get gradients, and the error falls."""
    mixer = seated(Hedgehog(), rotate=turned)
    q, k, v = (getattr(mixer, f"{n}_proj")(x).view(2, 9, -1, 6).transpose(1, 2) for n in "qkv")
    q, k = (y.transpose(1, 2) for y in turned(q.transpose(1, 2), k.transpose(1, 2), tables))
    truth = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    optimizer = torch.optim.Adam([*mixer.q_map.parameters(), *mixer.k_map.parameters()], lr=3e-2)
    errors = []
    for _ in range(60):
        with lessons(mixer) as found:
            out, _ = mixer(x, TokenLayout.text(2, 9), tables=tables)
        torch.testing.assert_close(out, mixer.o_proj(truth.transpose(1, 2).flatten(2)), atol=1e-5, rtol=1e-4)
        optimizer.zero_grad()
        found[0].backward()
        optimizer.step()
        errors.append(found[0].item())
    assert errors[-1] < 0.3 * errors[0]
    assert {name for name, p in mixer.named_parameters() if p.grad is not None} == {
        "q_map.weight", "q_map.bias", "k_map.weight", "k_map.bias",
    }  # fmt: skip
    assert mixer.lessons is None


def test_a_model_without_such_layers_has_nothing_to_learn():
    with pytest.raises(ValueError, match="no layer of this model mimics"), lessons(torch.nn.Linear(2, 2)):
        pass
