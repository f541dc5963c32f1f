"""GLA: the layer in a loop over its tokens."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from gnomon.vlm.layout import TokenLayout
from gnomon.vlm.mixers.gla import GLA


@torch.no_grad()
def test_the_rule_token_by_token(seated, x):
    mixer = seated(GLA(rank=3, temperature=2.0))
    found, _ = mixer(x, TokenLayout.text(2, 9))
    low = x @ mixer.decay[0].weight.T @ mixer.decay[1].weight.T + mixer.decay[1].bias
    fade = torch.sigmoid(low).sqrt().view(2, 9, 2, 6)
    q, k, v = (getattr(mixer, f"{n}_proj")(x).view(2, 9, -1, 6) for n in "qkv")
    gate = F.silu(mixer.gate_proj(x)).view(2, 9, 4, 6)
    memory = torch.zeros(2, 4, 6, 6)
    for t in range(9):
        for head in range(4):
            at = (slice(None), t, head // 2)
            memory[:, head] = fade[at][..., None] * memory[:, head] + k[at][..., None] * v[at][:, None]
        o = torch.einsum("bhd,bhdv->bhv", q[:, t], memory) * 6**-0.5
        o = o * torch.rsqrt(o.square().mean(-1, keepdim=True) + 1e-5) * mixer.norm.weight * gate[:, t]
        torch.testing.assert_close(found[:, t], mixer.o_proj(o.flatten(1)), atol=1e-5, rtol=1e-4)


def test_a_temperature_that_is_no_divisor_is_refused():
    with pytest.raises(ValueError, match="temperature 0"):
        GLA(temperature=0)
