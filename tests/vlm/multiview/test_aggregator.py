"""Against the rule written out with loops over views and complex numbers."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gnomon.vlm.multiview.aggregator import Aggregator
from gnomon.vlm.multiview.cross import CrossView, ViewLayout
from gnomon.vlm.multiview.patches import PatchEmbed

WIDTH, HEADS, DEPTH, PATCH = 16, 2, 2, 4


def aggregator() -> Aggregator:
    torch.manual_seed(0)
    made = Aggregator(PatchEmbed(WIDTH, PATCH), width=WIDTH, depth=DEPTH, heads=HEADS)
    for parameter in made.parameters():
        nn.init.normal_(parameter, std=0.4)
    return made


def turned(x: Tensor, places: list[tuple[int, int]]) -> Tensor:
    """(T,D) of one head."""
    quarter = x.shape[-1] // 4
    frequency = 100.0 ** -(torch.arange(quarter) / quarter)
    parts = []
    for axis, half in enumerate(x.split(2 * quarter, dim=-1)):
        angle = torch.tensor([place[axis] for place in places])[:, None] * frequency
        number = torch.complex(half[:, :quarter], half[:, quarter:]) * torch.exp(1j * angle)
        parts += [number.real, number.imag]
    return torch.cat(parts, dim=-1)


def block(x: Tensor, weights: dict[str, Tensor], places: list[tuple[int, int]]) -> Tensor:
    """(T,C) of one sequence."""

    def norm(value: Tensor, name: str) -> Tensor:
        return F.layer_norm(value, value.shape[-1:], weights[f"{name}.weight"], weights[f"{name}.bias"])

    def linear(value: Tensor, name: str) -> Tensor:
        return value @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    qkv = linear(norm(x, "norm1"), "attn.qkv").split(WIDTH, dim=-1)
    outputs = []
    for q, k, v in zip(*(part.split(WIDTH // HEADS, dim=-1) for part in qkv)):
        q, k = turned(norm(q, "attn.q_norm"), places), turned(norm(k, "attn.k_norm"), places)
        outputs.append((q @ k.T / (WIDTH // HEADS) ** 0.5).softmax(-1) @ v)
    x = x + weights["ls1.gamma"] * linear(torch.cat(outputs, dim=-1), "attn.proj")
    return x + weights["ls2.gamma"] * linear(F.gelu(linear(norm(x, "norm2"), "mlp.fc1")), "mlp.fc2")


def test_is_the_rule_written_out():
    made = aggregator()
    state = made.state_dict()
    images = torch.randn(1, 3, 3, 2 * PATCH, 3 * PATCH)
    layout = ViewLayout((2, 3), 5, torch.ones(1, 3, dtype=torch.bool))
    got, _ = made(images, layout, layers=[0, 1], cross=CrossView())

    def weights(kind: str, index: int) -> dict[str, Tensor]:
        start = f"{kind}_blocks.{index}."
        return {name[len(start) :]: value for name, value in state.items() if name.startswith(start)}

    places = [(0, 0)] * 5 + [(row, column) for row in (1, 2) for column in (1, 2, 3)]
    views = []
    for index, image in enumerate(images[0]):
        slot = min(index, 1)
        rows = [image[:, r : r + PATCH, c : c + PATCH] for r in (0, 4) for c in (0, 4, 8)]
        kernel, bias = state["patch_embed.proj.weight"].flatten(1), state["patch_embed.proj.bias"]
        patches = torch.stack([kernel @ row.flatten() + bias for row in rows])
        views.append(torch.cat([state["camera_token"][0, slot], state["register_token"][0, slot], patches]))
    for index in range(DEPTH):
        views = [block(view, weights("frame", index), places) for view in views]
        within = torch.stack(views)
        whole = block(torch.cat(views), weights("global", index), places * 3)
        views = list(whole.split(11))
        expected = torch.cat([within, torch.stack(views)], dim=-1)
        torch.testing.assert_close(got[index][0], expected, atol=1e-4, rtol=1e-4)


def test_frozen_layers_cost_nothing_where_nobody_asks():
    made = aggregator()
    layout = ViewLayout((1, 1), 5, torch.ones(1, 2, dtype=torch.bool))
    found, memory = made(torch.randn(1, 2, 3, PATCH, PATCH), layout, layers=[1], cross=CrossView())
    assert list(found) == [1] and memory is None
