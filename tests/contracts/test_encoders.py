"""What every encoder promises: a raster of H/stride x W/stride tokens, equal to the original model's own features."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
import timm
import torch
from torch import Tensor
from transformers import AutoModel, CLIPVisionConfig, Dinov2Config, Dinov2WithRegistersConfig, SiglipVisionConfig

from gnomon.vlm.encoders.base import Encoder
from gnomon.vlm.encoders.hf import HFVision
from gnomon.vlm.encoders.timm import Timm
from gnomon.vlm.part import build


@dataclass
class Case:
    """An encoder, and the original's raster features (I,N,C) on the same weights."""

    name: str
    size: tuple[int, int]
    args: dict[str, Any] = field(default_factory=dict)
    extra: dict[str, Any] = field(default_factory=dict)
    layer: int = -1
    prefix: int = 0
    cls: bool = False
    slack: int = 0

    def encoder(self) -> Encoder:
        torch.manual_seed(0)
        return Timm(self.name, args=self.args, layer=self.layer).eval()

    @torch.no_grad()
    def original(self, pixels: Tensor) -> Tensor:
        torch.manual_seed(0)
        whole = timm.create_model(self.name, **self.args, **self.extra).eval()
        if self.layer != -1:
            return whole.forward_intermediates(pixels, intermediates_only=True)[self.layer].flatten(2).mT
        features = whole.forward_features(pixels)
        if features.dim() == 3:
            return features[:, self.prefix :]
        # swin keeps channels last, convolutional networks first
        return features.flatten(1, 2) if features.shape[-1] == whole.num_features else features.flatten(2).mT


class Tower(Case):
    def _config(self) -> Any:
        families = (CLIPVisionConfig, SiglipVisionConfig, Dinov2Config, Dinov2WithRegistersConfig)
        known = {c.model_type: c for c in families}
        tiny = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 48}
        return known[self.name](**tiny, image_size=32, patch_size=8)

    def encoder(self) -> Encoder:
        torch.manual_seed(0)
        return HFVision(config=self._config().to_dict(), layer=self.layer).eval()

    @torch.no_grad()
    def original(self, pixels: Tensor) -> Tensor:
        torch.manual_seed(0)
        whole = AutoModel.from_config(self._config()).eval()
        out = whole(pixels, output_hidden_states=True, **self.extra)
        hidden = out.last_hidden_state if self.layer == -1 else out.hidden_states[self.layer]
        return hidden[:, self.prefix :]


VIT = {"img_size": 64, "embed_dim": 48, "depth": 3, "num_heads": 3}
ANY = {"dynamic_img_size": True}
INTERPOLATE = {"interpolate_pos_encoding": True}
CASES = [
    Case("vit_tiny_patch16_224", (64, 96), VIT, ANY, prefix=1, cls=True),
    Case("vit_tiny_patch16_224", (64, 96), VIT, ANY, layer=-2, prefix=1, cls=True),
    Case("vit_small_patch14_reg4_dinov2", (56, 84), VIT | {"img_size": 56}, ANY, prefix=5, cls=True),
    Case("vit_base_patch16_siglip_224", (96, 64), VIT, ANY),
    Case("vit_base_patch16_siglip_224", (64, 64), VIT, ANY, layer=-2),
    Case("convnext_atto", (64, 128), {"dims": (8, 16, 24, 32), "depths": (1, 1, 1, 1)}),
    Case("convnext_atto", (64, 96), {"dims": (8, 16, 24, 32), "depths": (1, 1, 1, 1)}, layer=-2),
    Case("resnet10t", (96, 64)),
    Case("resnet10t", (64, 96), layer=-2),
    Case(
        "swin_tiny_patch4_window7_224",
        (128, 192),
        {"img_size": 128, "window_size": 4, "embed_dim": 24, "depths": (2, 2), "num_heads": (2, 2)},
        {"strict_img_size": False},
    ),
    Case("tf_efficientnet_lite0", (64, 96), layer=-3, slack=1),
    Tower("clip_vision_model", (32, 48), extra=INTERPOLATE, layer=-2, prefix=1, cls=True),
    Tower("clip_vision_model", (32, 32), layer=-1, prefix=1, cls=True),
    Tower("siglip_vision_model", (48, 32), extra=INTERPOLATE, layer=-1),
    Tower("siglip_vision_model", (32, 32), layer=-2),
    Tower("dinov2", (32, 48), layer=-1, prefix=1, cls=True),
    Tower("dinov2_with_registers", (32, 48), layer=-2, prefix=5, cls=True),
]
NAMES = [f"{case.name}{case.layer}-{case.size[0]}x{case.size[1]}" for case in CASES]
every = pytest.mark.parametrize("case", CASES, ids=NAMES)


def pixels(case: Case, count: int = 2) -> Tensor:
    return torch.randn(count, 3, *case.size, generator=torch.Generator().manual_seed(1))


@every
def test_equals_the_original_bit_for_bit(case: Case):
    encoder, images = case.encoder(), pixels(case)
    with torch.no_grad():
        features = encoder(images)
    h, w = case.size[0] // encoder.stride, case.size[1] // encoder.stride
    assert h != w or case.size[0] == case.size[1]
    assert features.grid == [(h, w)] * 2
    assert features.tokens.shape == (2, h * w, encoder.width)
    assert torch.equal(features.tokens, case.original(images))
    assert (features.cls is not None) == case.cls
    if case.cls:
        assert features.cls.shape == (2, encoder.width)


@every
@torch.no_grad()
def test_row_of_a_batch_equals_the_image_alone(case: Case):
    encoder, images = case.encoder(), pixels(case)
    torch.testing.assert_close(encoder(images).tokens[1:], encoder(images[1:]).tokens, atol=1e-5, rtol=1e-4)


@every
@torch.no_grad()
def test_a_patch_moves_its_own_cell_most(case: Case):
    """Raster order: the cell that a disturbed patch changes most is the one that stands where the patch was."""
    encoder, images = case.encoder(), pixels(case, 1)
    before = encoder(images)
    (h, w), s = before.grid[0], encoder.stride
    for row, column in ((0, w - 1), (h - 1, 0), (h - 1, w - 1)):
        disturbed = images.clone()
        disturbed[:, :, row * s : (row + 1) * s, column * s : (column + 1) * s] += 5
        moved = (encoder(disturbed).tokens - before.tokens).norm(dim=-1)[0].argmax()
        # deep convolutions with random weights look a little to the side
        at = divmod(int(moved), w)
        assert max(abs(at[0] - row), abs(at[1] - column)) <= case.slack


@every
def test_every_parameter_gets_a_gradient(case: Case):
    encoder = case.encoder()
    features = encoder(pixels(case))
    (features.tokens * torch.randn_like(features.tokens)).sum().backward()
    assert [name for name, p in encoder.named_parameters() if p.grad is None] == []


@every
def test_spec_makes_the_same_encoder(case: Case):
    encoder = case.encoder()
    again = build(encoder.spec(), Encoder).eval()
    assert again.spec() == encoder.spec()
    again.load_state_dict(encoder.state_dict())
    images = pixels(case, 1)
    assert torch.equal(again(images).tokens, encoder(images).tokens)


@every
def test_sides_must_be_multiples_of_the_stride(case: Case):
    encoder = case.encoder()
    odd = torch.zeros(1, 3, encoder.stride * 2, encoder.stride * 2 + encoder.stride // 2)
    with pytest.raises(ValueError, match="multiple of"):
        encoder(odd)
