"""KDA against the same layer of Kimi Linear in transformers."""

from __future__ import annotations

import pytest
import torch

from gnomon.vlm.layout import TokenLayout
from gnomon.vlm.mixers.kda import KDA


@torch.no_grad()
def test_it_equals_kimi_linear(seated, x):
    kimi = pytest.importorskip("transformers.models.kimi_linear", reason="transformers is older than this model")
    config = kimi.KimiLinearConfig(
        hidden_size=20, linear_num_heads=4, linear_head_dim=6, linear_conv_kernel_dim=4, rms_norm_eps=1e-5,
        num_hidden_layers=2, layer_types=["linear_attention", "full_attention"],
    )  # fmt: skip
    theirs = kimi.modeling_kimi_linear.KimiLinearDeltaAttention(config, 0).eval()
    ours = seated(KDA(rank=6), keys=4)
    for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
        getattr(ours, name).bias.zero_()
        getattr(theirs, name).weight.copy_(getattr(ours, name).weight)
    theirs.conv1d.weight.copy_(torch.cat([ours.convs[name].weight for name in "qkv"])[:, None])
    gate = theirs.forget_gate
    pairs = [(gate.f_a_proj, ours.decay[0]), (gate.f_b_proj, ours.decay[1]), (theirs.b_proj, ours.strength)]
    pairs += [(theirs.g_a_proj, ours.gate_proj[0]), (theirs.g_b_proj, ours.gate_proj[1]), (theirs.o_norm, ours.norm)]
    for one, other in pairs:
        one.weight.copy_(other.weight)
    ours.gate_proj[1].bias.zero_()
    gate.A_log.copy_(ours.rate.view_as(gate.A_log))
    gate.dt_bias.copy_(ours.step)
    torch.testing.assert_close(ours(x, TokenLayout.text(2, 9))[0], theirs(x), atol=1e-5, rtol=1e-4)
