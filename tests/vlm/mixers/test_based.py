"""BASED: the layer as the matrix of its weights."""

from __future__ import annotations

import torch

from gnomon.vlm.layout import TokenLayout
from gnomon.vlm.mixers.based import Based


@torch.no_grad()
def test_the_rule_as_a_matrix(seated, x):
    mixer = seated(Based(feature=5))
    assert not hasattr(mixer, "q_proj") and not hasattr(mixer, "k_proj")
    found, _ = mixer(x, TokenLayout.text(2, 9))
    q, k = mixer.query(x).view(2, 9, 4, 5), mixer.key(x).view(2, 9, 2, 5).repeat_interleave(2, 2)
    v = mixer.v_proj(x).view(2, 9, 2, 6).repeat_interleave(2, 2)
    t = torch.einsum("bqhd,bkhd->bhqk", q, k) * 5**-0.5
    weights = (1 + t + t.square() / 2).tril()
    o = torch.einsum("bhqk,bkhv->bqhv", weights / weights.sum(-1, keepdim=True), v)
    torch.testing.assert_close(found, mixer.o_proj(o.flatten(2)), atol=1e-5, rtol=1e-4)
