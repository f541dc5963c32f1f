"""Operators and mixers in timm's vision transformers, with class and register tokens before the grid."""

from __future__ import annotations

import json

import pytest
import torch
from torch.nn import functional as F

from gnomon.vlm.blocks import tower_of
from gnomon.vlm.encoders.timm import Timm
from gnomon.vlm.part import build

VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2}
TOWERS = {
    "class token": ("vit_tiny_patch16_224", VIT),
    "registers": ("vit_small_patch14_reg4_dinov2", {**VIT, "patch_size": 8}),
    "grid alone": ("vit_tiny_patch16_224", {**VIT, "class_token": False, "global_pool": "avg"}),
    "norms": ("vit_tiny_patch16_224", {**VIT, "qk_norm": True, "scale_attn_norm": True}),
}
OPERATORS = {
    "plain": {},
    "mala": {},
    "rala": {},
    "inline": {},
    "linfusion": {},
    "agent": {"agents": (2, 2)},
    "neighborhood": {"window": (3, 3)},
    "clear": {"radius": 1.5},
    "axial": {"along": "y"},
    "sla": {"block_q": 4, "block_k": 4, "critical": 0.3},
}


def made(tower: str = "class token", **options) -> Timm:
    name, args = TOWERS[tower]
    torch.manual_seed(0)
    encoder = Timm(name, args=args, **options).eval()
    # initial weights are so small that attention hardly matters
    for name, weight in encoder.named_parameters():
        if weight.dim() == 2 and "mixer" not in name:
            torch.nn.init.normal_(weight, std=0.2)
        if name.endswith("gamma"):
            torch.nn.init.ones_(weight)
    return encoder


def pixels(images: int = 2, height: int = 32, width: int = 48) -> torch.Tensor:
    return torch.randn(images, 3, height, width, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("tower", TOWERS)
@torch.no_grad()
def test_exact_attention_is_timms_own(tower):
    plain, ours = made(tower), made(tower, operators=[{"name": "exact"}])
    assert plain.state_dict().keys() == ours.state_dict().keys()
    for size in ((32, 32), (32, 48)):
        found, expected = (encoder(pixels(2, *size)) for encoder in (ours, plain))
        torch.testing.assert_close(found.tokens, expected.tokens, atol=1e-5, rtol=1e-5)
        if expected.cls is not None:
            torch.testing.assert_close(found.cls, expected.cls, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("tower", ["class token", "registers", "grid alone"])
@pytest.mark.parametrize("name", OPERATORS)
@torch.no_grad()
def test_every_operator_runs_and_an_image_of_a_batch_equals_the_image_alone(name, tower):
    encoder = made(tower, operators=[{"name": name, "options": OPERATORS[name], "layers": [1]}])
    found = encoder(pixels()).tokens
    assert float((found - made(tower)(pixels()).tokens).abs().max()) > 1e-4
    for i in range(2):
        torch.testing.assert_close(found[i], encoder(pixels()[i : i + 1]).tokens[0], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("tower", ["class token", "registers", "grid alone"])
@torch.no_grad()
def test_a_neighbourhood_is_the_mask_that_it_says(tower):
    """Of cells; class and register tokens see and are seen by everything."""
    ours = made(tower, operators=[{"name": "neighborhood", "options": {"window": (3, 3)}}])
    plain = made(tower)
    prefix = plain.model.num_prefix_tokens
    place = torch.cartesian_prod(torch.arange(4), torch.arange(6))
    start = torch.stack([(place[:, axis] - 1).clamp(0, extent - 3) for axis, extent in ((0, 4), (1, 6))], 1)
    inside = ((place[None] >= start[:, None]) & (place[None] < start[:, None] + 3)).all(-1)
    mask = F.pad(inside, (prefix, 0, prefix, 0), value=True)
    x = plain.model.norm_pre(plain.model._pos_embed(plain.model.patch_embed(pixels())))
    for block in plain.model.blocks:
        x = block(x, attn_mask=mask[None, None])
    torch.testing.assert_close(ours(pixels()).tokens, plain.model.norm(x)[:, prefix:], atol=1e-5, rtol=1e-4)


AGENT = {"class_path": "gnomon.vlm.mixers.agent.Agent", "init_args": {"agents": [2, 3], "layers": [0]}}


@pytest.mark.parametrize("tower", ["class token", "registers", "grid alone", "norms"])
def test_a_mixer_in_a_block_learns_and_comes_back(tower):
    encoder = made(tower, mixers=[AGENT], operators=[{"name": "inline", "layers": [1]}])
    encoder(pixels()).tokens.square().sum().backward()
    for name, parameter in encoder.named_parameters():
        if "mixer" in name and "k_proj.bias" not in name:
            assert parameter.grad is not None and float(parameter.grad.abs().sum()) > 0, name
    again = build(json.loads(json.dumps(encoder.spec())), Timm)
    again.load_state_dict(encoder.state_dict())
    assert torch.equal(again.eval()(pixels()).tokens, encoder(pixels()).tokens)


@torch.no_grad()
def test_the_maps_of_the_attention_are_taken_over():
    """Queries, keys and values are the same, and so is what the block makes of the same answers."""
    encoders = []
    for mixers in ([], [AGENT]):
        torch.manual_seed(0)
        encoders.append(Timm(*TOWERS["norms"][:1], args=TOWERS["norms"][1], mixers=mixers).eval())
    attention, mixer = encoders[0].model.blocks[0].attn, encoders[1].model.blocks[0].attn.mixer
    x = torch.randn(2, 17, 24)
    q, k, v = attention.qkv(x).unflatten(2, (3, 2, 12)).unbind(2)
    for name, expected in {"q": attention.q_norm(q), "k": attention.k_norm(k), "v": v}.items():
        torch.testing.assert_close(mixer.project(name, x), expected)
    torch.testing.assert_close(mixer.o_proj(x), attention.proj(attention.norm(x)))


def test_scores_of_other_attention_are_not_guessed_at():
    encoder = made(operators=[{"name": "mala"}])
    assert tower_of(encoder) is None
    with pytest.raises(ValueError, match="attention cannot be read"):
        encoder(pixels(), frozenset({"saliency"}))
    exact = made(operators=[{"name": "exact"}])(pixels(), frozenset({"saliency"})).saliency
    torch.testing.assert_close(exact, made()(pixels(), frozenset({"saliency"})).saliency)


REFUSED = {
    "twice": ({"operators": [{"name": "mala"}, {"name": "rala", "layers": [1]}]}, "block 1 .* another already"),
    "block": ({"operators": [{"name": "mala", "layers": [2]}]}, "not some of 0 to 1"),
    "causal mixer": ({"mixers": [{"class_path": "gnomon.vlm.mixers.gla.GLA"}]}, "it is for decoders"),
    "state": ({"operators": [{"name": "gla"}]}, "needs g"),
}


@pytest.mark.parametrize(("options", "why"), REFUSED.values(), ids=list(REFUSED))
def test_what_cannot_be_is_refused(options, why):
    with pytest.raises(ValueError, match=why) as error:
        made(**options)
    assert "\n" not in str(error.value)


def test_a_network_without_such_blocks_is_refused():
    with pytest.raises(ValueError, match="not some of 0 to -1"):
        Timm("resnetv2_18", operators=[{"name": "mala", "layers": [0]}])
    with pytest.raises(ValueError, match="no plain attention"):
        Timm("eva02_tiny_patch14_224", args={"depth": 1, "img_size": 28}, operators=[{"name": "mala"}])
