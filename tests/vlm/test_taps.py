"""Taps: what encoders tell reducers, against the attention weights that the models' own libraries give."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModel, CLIPVisionConfig, Dinov2Config, Dinov2WithRegistersConfig, SiglipVisionConfig

from gnomon.vlm import taps
from gnomon.vlm.encoders.base import Encoder
from gnomon.vlm.encoders.hf import HFVision
from gnomon.vlm.encoders.timm import Timm

TINY = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 48}
FAMILIES = {c.model_type: c for c in (CLIPVisionConfig, SiglipVisionConfig, Dinov2Config, Dinov2WithRegistersConfig)}
VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 3, "num_heads": 3}
ALL = frozenset({"saliency", "keys", "wide_saliency", "wide_keys", "cls", "rows", "grid"})


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Random weights are the same whatever test came before."""
    torch.manual_seed(0)


def pixels(height: int = 32, width: int = 48) -> Tensor:
    return torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("layer", [-1, -2])
@pytest.mark.parametrize(
    "name, prefix", [("clip_vision_model", 1), ("siglip_vision_model", 0), ("dinov2", 1), ("dinov2_with_registers", 5)]
)
@torch.no_grad()
def test_towers_of_transformers(name: str, prefix: int, layer: int):
    config = FAMILIES[name](**TINY, image_size=32, patch_size=8)
    encoder = HFVision(config=config.to_dict(), layer=layer).eval()
    whole = AutoModel.from_config(config, attn_implementation="eager").eval()
    whole.load_state_dict({**whole.state_dict(), **_theirs(whole, encoder)})
    projected: dict[str, Tensor] = {}
    # sharp attention, so that heads and rows differ
    for model in (encoder, whole):
        for key, tensor in model.state_dict().items():
            if "_proj.weight" in key and ("q_" in key or "k_" in key):
                tensor.copy_(torch.randn(tensor.shape, generator=torch.Generator().manual_seed(len(key[-20:]))) * 0.6)
    for key, module in whole.named_modules():
        if key.endswith((f".{3 + layer}.self_attn.k_proj", f".{3 + layer}.attention.k_proj")):
            module.register_forward_hook(lambda m, i, out: projected.update(k=out))
        if key.endswith((f".{3 + layer}.self_attn.q_proj", f".{3 + layer}.attention.q_proj")):
            module.register_forward_hook(lambda m, i, out: projected.update(q=out))
    options = {} if "dinov2" in name else {"interpolate_pos_encoding": True}
    theirs = whole(pixels(), output_attentions=True, output_hidden_states=True, **options)
    features = encoder(pixels(), ALL)
    weights = theirs.attentions[layer]
    keys = projected["k"][:, prefix:]
    torch.testing.assert_close(features.wide_keys, keys)
    torch.testing.assert_close(features.keys, keys.unflatten(2, (4, 8)).mean(2))
    wide = (projected["q"] @ projected["k"].mT / 32**0.5).softmax(-1)
    if prefix:
        torch.testing.assert_close(features.saliency, weights[:, :, 0, prefix:].mean(1))
        torch.testing.assert_close(features.wide_saliency, wide[:, 0, prefix:])
        assert bool((features.saliency.sum(1) < 1).all()), "class and register tokens take their share"
    else:
        torch.testing.assert_close(features.saliency, weights.mean((1, 2)))
        torch.testing.assert_close(features.wide_saliency, wide.mean(1))
        torch.testing.assert_close(features.saliency.sum(1), torch.ones(2))
    if layer == -2:
        assert torch.equal(features.tokens, encoder(pixels()).tokens)
        torch.testing.assert_close(features.tokens, theirs.hidden_states[-2][:, prefix:], atol=1e-5, rtol=1e-4)


def _theirs(whole: nn.Module, encoder: HFVision) -> dict[str, Tensor]:
    """The encoder's parameters under the names of the whole model."""
    names = {key.removeprefix("vision_model."): key for key in whole.state_dict()}
    return {names[key.removeprefix("tower.")]: value for key, value in encoder.state_dict().items()}


class Unfused:
    """What timm's own unfused attention multiplies: its weights, and the keys of each block."""

    def __init__(self, model: nn.Module) -> None:
        self.weights: list[Tensor] = []
        for module in model.modules():
            if hasattr(module, "fused_attn"):
                module.fused_attn = False
                module.attn_drop.register_forward_hook(lambda m, i, out: self.weights.append(out))


@pytest.mark.parametrize(
    "name, args, prefix",
    [
        ("vit_tiny_patch16_224", VIT, 1),
        ("vit_small_patch14_reg4_dinov2", VIT, 5),
        ("vit_base_patch16_siglip_224", VIT, 0),
        ("vit_tiny_patch16_224", VIT | {"qk_norm": True}, 1),
        ("eva02_tiny_patch14_224", VIT, 1),
        ("vit_small_patch16_dinov3", VIT, 5),
        ("vit_small_patch16_rope_224", VIT, 1),
    ],
)
@torch.no_grad()
def test_vision_transformers_of_timm(name: str, args: dict[str, Any], prefix: int):
    """Queries as the kernel gets them: with the norms and the rotation that timm's own unfused attention has, too."""
    encoder = Timm(name, args=args, layer=-2).eval()
    for key, tensor in encoder.state_dict().items():
        if "qkv.weight" in key or "q_proj.weight" in key or "k_proj.weight" in key:
            tensor.mul_(12 / tensor.norm(dim=1).mean() ** 0.5)
    features = encoder(pixels(), ALL)
    unfused = Unfused(encoder.model)
    again = encoder(pixels())
    torch.testing.assert_close(features.tokens, again.tokens, atol=1e-5, rtol=1e-4)
    weights = unfused.weights[-1]
    cls = prefix > 0
    expected = weights[:, :, 0, prefix:].mean(1) if cls else weights.mean((1, 2))
    torch.testing.assert_close(features.saliency, expected, atol=1e-6, rtol=1e-4)
    assert float(features.saliency.std()) > 1e-4
    assert features.keys.shape == (2, 24, 16) and features.wide_keys.shape == (2, 24, 48)
    torch.testing.assert_close(features.wide_keys.unflatten(2, (3, 16)).mean(2), features.keys)


@torch.no_grad()
def test_keys_of_timm_are_those_of_its_projection():
    encoder = Timm("vit_tiny_patch16_224", args=VIT, layer=-1).eval()
    found: list[Tensor] = []
    encoder.model.blocks[2].attn.qkv.register_forward_hook(lambda m, i, out: found.append(out))
    features = encoder(pixels(), ALL)
    assert torch.equal(features.wide_keys, found[0][:, 1:, 48:96])
    query, key = found[0][:, :, :48], found[0][:, :, 48:96]
    wide = (query @ key.mT / 48**0.5).softmax(-1)
    torch.testing.assert_close(features.wide_saliency, wide[:, 0, 1:])


MAKERS: dict[str, Callable[[], Encoder]] = {
    "vit": lambda: Timm("vit_tiny_patch16_224", args=VIT),
    "siglip": lambda: HFVision(config={**TINY, "model_type": "siglip_vision_model", "image_size": 32, "patch_size": 8}),
    "cnn": lambda: Timm("resnet10t", layer=-2),
}


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_asking_changes_neither_features_nor_gradients(make: Callable[[], Encoder]):
    encoder = make().eval()
    plain = encoder(pixels())
    assert plain.saliency is None and plain.keys is None and plain.wide_keys is None
    for want in (ALL, frozenset({"wide_keys"}), frozenset({"rows", "cls"})):
        found = encoder(pixels(), want)
        assert torch.equal(found.tokens, plain.tokens)
        for name in taps.NAMES:
            value = getattr(found, name)
            assert (value is not None) == (name in want)
            assert value is None or not value.requires_grad
    encoder(pixels(), ALL).tokens.sum().backward()
    assert [name for name, p in encoder.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
@torch.no_grad()
def test_a_row_of_a_batch_equals_the_image_alone(make: Callable[[], Encoder]):
    encoder = make().eval()
    together, alone = encoder(pixels(), ALL), encoder(pixels()[1:], ALL)
    for name in taps.NAMES:
        torch.testing.assert_close(getattr(together, name)[1:], getattr(alone, name), atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_without_attention_the_features_attend_to_each_other():
    encoder = Timm("resnet10t", layer=-2).eval()
    features = encoder(pixels(64, 96), ALL)
    tokens = features.tokens
    spread = tokens.std(1, correction=0, keepdim=True)
    keys = (tokens - tokens.mean(1, keepdim=True)) / spread
    live = (spread > 1e-2).expand_as(keys)
    torch.testing.assert_close(features.keys[live], keys[live], atol=1e-3, rtol=1e-3)
    assert bool(live.any()) and bool((features.keys[(spread == 0).expand_as(keys)] == 0).all())
    expected = (features.keys @ features.keys.mT / encoder.width**0.5).softmax(-1).mean(1)
    torch.testing.assert_close(features.saliency, expected)
    assert torch.equal(features.wide_saliency, features.saliency) and torch.equal(features.wide_keys, features.keys)


def test_the_substitute_of_one_cell_and_of_equal_cells_is_finite():
    for tokens in (torch.randn(2, 1, 8), torch.ones(2, 5, 8)):
        found = taps.substitute(tokens, ALL)
        count = tokens.shape[1]
        torch.testing.assert_close(found["saliency"], torch.full((2, count), 1 / count))
        assert torch.equal(found["keys"], torch.zeros_like(tokens))


UNREADABLE = {
    # windows, a bias in the logits, no fused kernel, several attentions of other shapes
    "swin": ("swin_tiny_patch4_window7_224", {"img_size": 64, "window_size": 4, "embed_dim": 24, "depths": (1, 1)}),
    "relative positions": ("vit_relpos_small_patch16_224", VIT),
    "xcit": ("xcit_nano_12_p16_224", {"depth": 2}),
    "linear attention": ("efficientvit_b0", {}),
}


@pytest.mark.parametrize("name, args", UNREADABLE.values(), ids=UNREADABLE)
def test_attention_that_cannot_be_read_is_refused(name: str, args: dict[str, Any]):
    encoder = Timm(name, args=args).eval()
    size = encoder.fixed or (64, 64)
    encoder(pixels(*size), frozenset({"cls"}))
    with pytest.raises(ValueError, match=r"attention cannot be read.* use a plain vision transformer") as caught:
        encoder(pixels(*size), frozenset({"saliency"}))
    assert "\n" not in str(caught.value)


def test_nothing_stays_behind_after_an_error():
    block = nn.Linear(4, 4)
    with pytest.raises(RuntimeError), taps.watched(block) as seen:
        block(torch.zeros(1, 3))
    assert torch.overrides._len_torch_function_stack() == 0
    nn.functional.scaled_dot_product_attention(*[torch.zeros(1, 1, 2, 4)] * 3)
    assert seen == [] and not block._forward_hooks and not block._forward_pre_hooks


@torch.no_grad()
def test_a_compiled_block_is_looked_into():
    encoder = Timm("vit_tiny_patch16_224", args=VIT).eval()
    expected = encoder(pixels(), ALL)
    for block in encoder.model.blocks:
        block.compile(backend="eager")
    encoder(pixels())
    found = encoder(pixels(), ALL)
    torch.testing.assert_close(found.saliency, expected.saliency)
