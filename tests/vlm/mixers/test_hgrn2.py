"""HGRN-2: the layer in a loop over its tokens, and where its bounds begin."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from gnomon.kernels.linear.hgrn2 import lower_bounds
from gnomon.vlm.freeze import Group, groups
from gnomon.vlm.layout import TokenLayout
from gnomon.vlm.mixers.hgrn2 import HGRN2


@torch.no_grad()
def test_the_rule_token_by_token(seated, x):
    mixer = seated(HGRN2())
    found, _ = mixer(x, TokenLayout.text(2, 9))
    lower = torch.sigmoid(mixer.bound).view(2, 6)
    keep = lower + (1 - lower) * torch.sigmoid(mixer.k_proj(x)).view(2, 9, 2, 6)
    q, v = F.silu(mixer.q_proj(x)).view(2, 9, 4, 6), mixer.v_proj(x).view(2, 9, 2, 6)
    memory = torch.zeros(2, 4, 6, 6)
    for t in range(9):
        for head in range(4):
            f = keep[:, t, head // 2][..., None]
            memory[:, head] = f * memory[:, head] + (1 - f) * v[:, t, head // 2][:, None]
        o = (torch.einsum("bhd,bhdv->bhv", q[:, t], memory) * 6**-0.5).flatten(1)
        o = o * torch.rsqrt(o.square().mean(-1, keepdim=True) + 1e-5) * mixer.norm.weight
        torch.testing.assert_close(found[:, t], mixer.o_proj(o), atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_bounds_begin_where_the_papers_do(seated):
    begin = lower_bounds(torch.zeros(4, 1))
    for layer in range(1, 4):
        mixer = HGRN2()
        seated(mixer, layer=layer)
        fresh = torch.logit(begin[layer])
        # the fixture stirs the weights; what it added has mean zero
        assert abs(float(mixer.bound.mean() - fresh)) < 0.3
    first = HGRN2()
    seated(first, layer=0)
    assert first.bound is None


@pytest.mark.parametrize("keys", [1, 2])
def test_weight_decay_leaves_the_bounds_where_they_are(seated, keys):
    """Zero would be a bound of one half, whatever the layer."""
    mixer = seated(HGRN2(), keys=keys)
    bound = mixer.bound.detach().clone()
    for parameter in mixer.parameters():
        parameter.grad = torch.zeros_like(parameter)
    torch.optim.AdamW(groups(mixer, [Group("*", lr=0.1, wd=0.5)])).step()
    assert torch.equal(mixer.bound, bound)
