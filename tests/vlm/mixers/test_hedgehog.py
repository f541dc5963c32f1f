"""Hedgehog: the layer as the matrix of its weights, in a model that had softmax attention, and what it learns."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from gnomon.vlm.freeze import Group, groups
from gnomon.vlm.layout import TokenLayout
from gnomon.vlm.mixers.base import Attention, Rows, lessons
from gnomon.vlm.mixers.hedgehog import Hedgehog
from gnomon.vlm.mixers.lolcats import LoLCATs


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
        for feature_map, y in ((mixer.learned_q, q[:, :, head]), (mixer.learned_k, k[:, :, head // 2])):
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
    """Attention transfer: the layer answers by softmax meanwhile, its error counts whatever the loss is, and falls."""
    mixer = seated(Hedgehog(), rotate=turned).requires_grad_(False)
    maps = [*mixer.learned_q.requires_grad_(True).parameters(), *mixer.learned_k.requires_grad_(True).parameters()]
    q, k, v = (getattr(mixer, f"{n}_proj")(x).view(2, 9, -1, 6) for n in "qkv")
    q, k = turned(q, k, tables)
    truth = F.scaled_dot_product_attention(*(y.transpose(1, 2) for y in (q, k, v)), is_causal=True, enable_gqa=True)
    layout, optimizer, errors = TokenLayout.text(2, 9), torch.optim.Adam(maps, lr=3e-2), []
    for _ in range(60):
        error = F.mse_loss(mixer.mix(q, k, v, Rows(layout, None), None)[0], truth.transpose(1, 2))
        expected = torch.autograd.grad(5 * error, maps)
        with lessons(mixer, weight=5.0) as given:
            out, _ = mixer(x, layout, tables=tables)
        torch.testing.assert_close(out, mixer.o_proj(truth.transpose(1, 2).flatten(2)), atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(given.errors[1], error.detach())
        optimizer.zero_grad()
        out.square().sum().backward()
        torch.testing.assert_close([p.grad for p in maps], list(expected), atol=1e-6, rtol=1e-3)
        optimizer.step()
        errors.append(error.item())
    assert errors[-1] < 0.3 * errors[0]
    assert mixer.lessons is None


@torch.no_grad()
def test_changes_of_low_rank_begin_at_nothing_and_are_changes_of_the_maps(seated, x, tables):
    plain, mixer = seated(Hedgehog(), rotate=turned), seated(Hedgehog(rank=2), rotate=turned)
    mixer.load_state_dict(plain.state_dict(), strict=False)
    for name in "qkvo":
        low = getattr(mixer, f"low_{name}")
        linear = getattr(plain, f"{name}_proj")
        linear.weight += 2 * low[1].weight @ low[0].weight
    layout = TokenLayout.text(2, 9)
    found, expected = mixer(x, layout, tables=tables)[0], plain(x, layout, tables=tables)[0]
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
    fresh = Hedgehog(rank=2)
    maps = {f"{name}_proj": getattr(plain, f"{name}_proj") for name in "qkvo"}
    fresh.setup(Attention(maps, 20, 4, 2, 6, 6**-0.5, 0, 1, rotate=turned))
    assert all(float(getattr(fresh, f"low_{name}")[1].weight.abs().max()) == 0 for name in "qkvo")


@pytest.mark.parametrize("mixer", [Hedgehog, LoLCATs])
def test_weight_decay_is_for_the_changes_of_low_rank_and_not_for_the_learned_maps(seated, mixer):
    """These begin as the identity; at zero they would tell no keys apart."""
    mixer = seated(mixer(rank=2))
    names = {id(p): name for name, p in mixer.named_parameters()}
    decayed, kept = groups(mixer, [Group(["low_*", "learned_*"], lr=0.1, wd=0.5), Group("*", lr=0.1)])[:2]
    assert decayed["weight_decay"] == 0.5 and kept["weight_decay"] == 0.0
    assert {names[id(p)].split("_")[0] for p in decayed["params"]} == {"low"}
    assert {names[id(p)].split("_")[0] for p in kept["params"]} == {"learned"}


def test_a_negative_rank_is_refused():
    with pytest.raises(ValueError, match="Hedgehog: rank -1 is negative"):
        Hedgehog(rank=-1)


def test_a_model_without_such_layers_has_nothing_to_learn():
    with pytest.raises(ValueError, match="no layer of this model mimics"), lessons(torch.nn.Linear(2, 2)):
        pass
