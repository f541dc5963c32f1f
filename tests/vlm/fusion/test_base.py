"""What fusions share: attention equal to torch's own, and helpers."""

from __future__ import annotations

import torch
from torch import nn

from gnomon.vlm.fusion.base import Attention, Merger, owners
from gnomon.vlm.layout import Features


def test_attention_is_torchs():
    ours, torchs = Attention(16, 4), nn.MultiheadAttention(16, 4, batch_first=True)
    torchs.in_proj_weight.data = torch.cat([ours.query.weight, ours.key.weight, ours.value.weight]).detach()
    torchs.out_proj.weight.data = ours.out.weight.detach()
    draw = torch.Generator().manual_seed(0)
    q, k, v = torch.randn(2, 5, 16, generator=draw), *torch.randn(2, 2, 7, 16, generator=draw)
    there = torch.rand(2, 7, generator=draw) > 0.3
    expected, _ = torchs(q, k, v, key_padding_mask=~there, need_weights=False)
    torch.testing.assert_close(ours(q, k, v, there), expected, atol=1e-6, rtol=1e-5)


def test_attention_begins_as_torchs_does():
    ours, torchs = Attention(256, 4), nn.MultiheadAttention(256, 4)
    bound = float(torchs.in_proj_weight.detach().abs().max())
    assert abs(float(ours.value.weight.detach().abs().max()) - bound) < 1e-3 * bound and not ours.query.bias.any()


def test_merger_norms_as_the_published_one_does():
    """Small tokens show the epsilon of 1e-6."""
    merger = Merger(4, 4)
    x = torch.full((1, 4), 1e-3)
    torch.testing.assert_close(merger.norm(x), x / (1e-6 + 1e-6) ** 0.5)


def test_images_of_a_scene_have_one_owner():
    where = torch.tensor([[0, 4, 0], [0, 1, 0], [0, 4, 1]])
    owner, count = owners(Features(torch.zeros(3, 1, 1), [(1, 1)] * 3, where=where))
    assert owner.tolist() == [1, 0, 1] and count == 2
