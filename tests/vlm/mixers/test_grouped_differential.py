"""GroupedDifferential: the layer as two matrices per head, and which heads are signal and noise."""

from __future__ import annotations

import math

import pytest
import torch

from gnomon.vlm.layout import Kind, TokenLayout
from gnomon.vlm.mixers.grouped_differential import GroupedDifferential

SIGNALS = {1: [0, 2], 3: [0, 1, 2]}
"""Of four heads."""


@pytest.mark.parametrize("layer", [0, 3])
@pytest.mark.parametrize("ratio", [1, 3])
@torch.no_grad()
def test_the_rule_head_by_head(seated, x, ratio, layer):
    mixer = seated(GroupedDifferential(ratio=ratio), layer=layer)
    found, _ = mixer(x, TokenLayout.text(2, 9))
    q, k, v = (getattr(mixer, f"{n}_proj")(x).view(2, 9, -1, 6) for n in "qkv")
    future = torch.ones(9, 9).triu(1).bool()

    def attend(head: int, key_head: int) -> torch.Tensor:
        scores = (q[:, :, head] @ k[:, :, key_head].mT * 6**-0.5).masked_fill(future, -torch.inf)
        return scores.softmax(-1) @ v.flatten(2)

    first = 0.8 - 0.6 * math.exp(-0.3 * layer)
    a_q, a_k, b_q, b_k = mixer.vectors
    amount = math.exp(float(a_q @ a_k)) - math.exp(float(b_q @ b_k)) + first
    outputs = []
    for head in SIGNALS[ratio]:
        noise = head // (ratio + 1) * (ratio + 1) + ratio
        o = attend(head, 0) - amount * attend(noise, 1)
        o = o * torch.rsqrt(o.square().mean(-1, keepdim=True) + 1e-5) * mixer.norm.weight
        outputs.append((1 - first) * o)
    last = mixer.o_proj if ratio == 1 else mixer.out_proj
    torch.testing.assert_close(found, last(torch.cat(outputs, -1)), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("ratio", [1, 3])
@torch.no_grad()
def test_decoding_and_packing_at_every_ratio(seated, x, ratio):
    mixer = seated(GroupedDifferential(ratio=ratio))
    whole, _ = mixer(x, TokenLayout.text(2, 9))
    _, memory = mixer(x[:, :7], TokenLayout.text(2, 7), {})
    for t in (7, 8):
        found, memory = mixer(x[:, t : t + 1], TokenLayout.text(2, 1, start=t), memory)
        torch.testing.assert_close(found[:, 0], whole[:, t], atol=1e-5, rtol=1e-4)
    packed = TokenLayout.text(2, 9)
    packed.document = torch.tensor([[0] * 4 + [1] * 5] * 2)
    packed.kind[0, 2] = Kind.PAD
    found, _ = mixer(x, packed)
    torch.testing.assert_close(found[:, 4:], mixer(x[:, 4:], TokenLayout.text(2, 5))[0], atol=1e-5, rtol=1e-4)


def test_all_parameters_learn_at_a_ratio(seated, x):
    mixer = seated(GroupedDifferential(ratio=3))
    assert not hasattr(mixer, "o_proj")
    mixer(x, TokenLayout.text(2, 9))[0].square().sum().backward()
    assert all(float(p.grad.abs().sum()) > 0 for p in mixer.parameters())


def test_heads_that_form_no_groups_are_refused(seated):
    with pytest.raises(ValueError, match="4 heads with 2 key heads at ratio 2"):
        seated(GroupedDifferential(ratio=2))
    with pytest.raises(ValueError, match="4 heads with 1 key heads at ratio 1"):
        seated(GroupedDifferential(), keys=1)
    with pytest.raises(ValueError, match="ratio 0"):
        GroupedDifferential(ratio=0)
