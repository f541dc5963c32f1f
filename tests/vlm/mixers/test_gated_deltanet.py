"""Gated DeltaNet against the same layer of a model in transformers, and its options by hand."""

from __future__ import annotations

import math

import pytest
import torch

from gnomon.vlm.layout import TokenLayout
from gnomon.vlm.mixers.base import decay_parameters
from gnomon.vlm.mixers.gated_deltanet import GatedDeltaNet

LAYOUT = TokenLayout.text(2, 9)


@pytest.mark.parametrize("negative", [False, True])
@torch.no_grad()
def test_it_equals_olmo_hybrid(seated, x, negative):
    module = "transformers.models.olmo_hybrid"
    olmo = pytest.importorskip(module, reason="this transformers has no such model")
    config = olmo.OlmoHybridConfig(
        hidden_size=20, linear_num_key_heads=4, linear_num_value_heads=4, linear_key_head_dim=6,
        linear_value_head_dim=6, linear_conv_kernel_dim=4, linear_allow_neg_eigval=negative, num_hidden_layers=2,
        layer_types=["linear_attention", "full_attention"],
    )  # fmt: skip
    theirs = olmo.modeling_olmo_hybrid.OlmoHybridGatedDeltaNet(config, 0).eval()
    ours = seated(GatedDeltaNet(negative=negative), keys=4)
    for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
        getattr(ours, name).bias.zero_()
        getattr(theirs, name).weight.copy_(getattr(ours, name).weight)
    theirs.conv1d.weight.copy_(torch.cat([ours.convs[name].weight for name in "qkv"])[:, None])
    theirs.a_proj.weight.copy_(ours.decay.weight)
    theirs.b_proj.weight.copy_(ours.strength.weight)
    theirs.g_proj.weight.copy_(ours.gate_proj.weight)
    theirs.o_norm.weight.copy_(ours.norm.weight)
    theirs.A_log.copy_(ours.rate)
    theirs.dt_bias.copy_(ours.step)
    torch.testing.assert_close(ours(x, LAYOUT)[0], theirs(x), atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_initial_decays_are_the_papers():
    """Rates below 16 and steps between 0.001 and 0.1, evenly by their logarithms."""
    rate, step = decay_parameters(4000, 4000, least=0)
    assert 15.5 < float(rate.exp().max()) <= 16 and abs(float(rate.exp().mean()) - 8) < 0.5
    steps = torch.nn.functional.softplus(step)
    assert 1e-3 <= float(steps.min()) < 1.1e-3 and 0.09 < float(steps.max()) <= 0.1001
    assert abs(float(steps.log().mean()) - math.log(1e-2)) < 0.1


@torch.no_grad()
def test_without_a_gate_and_with_shared_keys(seated, x):
    ungated = seated(GatedDeltaNet(gate=False))
    assert not hasattr(ungated, "gate_proj")
    # a key head that is shared is a key head that stands there twice
    shared, twice = seated(GatedDeltaNet(gate=False)), seated(GatedDeltaNet(gate=False), keys=4)
    own = shared.state_dict()
    for name in ("k_proj.weight", "k_proj.bias", "v_proj.weight", "v_proj.bias", "convs.k.weight", "convs.v.weight"):
        own[name] = own[name].unflatten(0, (2, 6)).repeat_interleave(2, 0).flatten(0, 1)
    twice.load_state_dict(own)
    torch.testing.assert_close(shared(x, LAYOUT)[0], twice(x, LAYOUT)[0], atol=1e-6, rtol=1e-5)
