"""SLA: the layer from two matrices of all pairs, and softmax attention over everything at the beginning."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from gnomon.vlm.layout import TokenLayout
from gnomon.vlm.mixers.base import Attention
from gnomon.vlm.mixers.sla import SLA

FEATURES = {"softmax": lambda x: x.softmax(-1), "elu": lambda x: F.elu(x) + 1, "relu": torch.relu}


def parts(mixer: SLA, x: torch.Tensor) -> list[torch.Tensor]:
    return [getattr(mixer, f"{n}_proj")(x).unflatten(2, (4, 6)).transpose(1, 2) for n in "qkv"]


@pytest.mark.parametrize("feature", list(FEATURES))
@torch.no_grad()
def test_the_rule_as_two_matrices(seated, feature):
    """Four blocks of three tokens, the last of them short: one under softmax, one left out, two linear."""
    mixer = seated(SLA(critical=0.25, negligible=0.25, block=3, kernel=feature), keys=4)
    x = torch.randn(2, 11, 20)
    found, memory = mixer(x, TokenLayout.text(2, 11))
    assert memory is None
    q, k, v = parts(mixer, x)
    means = [torch.stack([part.mean(2) for part in y.split(3, 2)], 2) for y in (q, k - k.mean(2, keepdim=True))]
    order = (means[0] @ means[1].mT).argsort(-1, descending=True)
    rank = order.argsort(-1).repeat_interleave(3, 2).repeat_interleave(3, 3)[:, :, :11, :11]
    o = (q @ k.mT * 6**-0.5).masked_fill(rank > 0, -torch.inf).softmax(-1) @ v
    weights = FEATURES[feature](q) @ FEATURES[feature](k).mT * ((rank > 0) & (rank < 3))
    linear = weights @ v / weights.sum(-1, keepdim=True)
    o = o + linear.nan_to_num() @ mixer.weight.T + mixer.bias
    torch.testing.assert_close(found, mixer.o_proj(o.transpose(1, 2).flatten(2)), atol=1e-4, rtol=1e-3)


@torch.no_grad()
def test_with_all_blocks_critical_it_begins_as_softmax_attention(seated):
    mixer, x = seated(SLA(critical=1.0, negligible=0.0, block=4), keys=4), torch.randn(2, 11, 20)
    for parameter in (mixer.weight, mixer.bias):
        parameter.zero_()
    o = F.scaled_dot_product_attention(*parts(mixer, x))
    found, _ = mixer(x, TokenLayout.text(2, 11))
    torch.testing.assert_close(found, mixer.o_proj(o.transpose(1, 2).flatten(2)), atol=1e-5, rtol=1e-4)


def test_the_projection_begins_at_zero_and_learns_from_there(seated):
    maps = {f"{name}_proj": nn.Linear(20, 24) for name in "qkv"} | {"o_proj": nn.Linear(24, 20)}
    fresh = SLA(block=2)
    fresh.setup(Attention(maps, 20, 4, 4, 6, 6**-0.5, 0, 1))
    assert not fresh.weight.any() and not fresh.bias.any()
    fresh(torch.randn(2, 11, 20), TokenLayout.text(2, 11))[0].square().sum().backward()
    assert float(fresh.weight.grad.abs().min()) > 0 and float(fresh.bias.grad.abs().min()) > 0


@pytest.mark.parametrize(
    "options, match",
    [
        ({"critical": 0.0}, "0.0 and"),
        ({"critical": 0.95}, "0.95"),
        ({"block": 0}, "block 0"),
        ({"kernel": "x"}, "kernel .x"),
    ],
)
def test_wrong_options_are_refused(options, match):
    with pytest.raises(ValueError, match=match):
        SLA(**options)
