"""Against transformers' DINOv2 with registers; positions that are resampled the older way against what they must be."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from transformers import Dinov2WithRegistersConfig, Dinov2WithRegistersModel

from gnomon.vlm.multiview.dinov2 import DINOv2

WIDTH = 16


def original() -> Dinov2WithRegistersModel:
    config = Dinov2WithRegistersConfig(
        hidden_size=WIDTH, num_hidden_layers=2, num_attention_heads=2, image_size=56, patch_size=14
    )
    torch.manual_seed(0)
    made = Dinov2WithRegistersModel(config).eval()
    for parameter in made.parameters():
        nn.init.normal_(parameter, std=0.3)
    return made


def ours(theirs: Dinov2WithRegistersModel) -> DINOv2:
    """With the other's weights under the published names."""
    state, own = theirs.state_dict(), {}
    places = {
        "cls_token": "cls_token",
        "pos_embed": "position_embeddings",
        "register_tokens": "register_tokens",
        "mask_token": "mask_token",
        "patch_embed.proj.weight": "patch_embeddings.projection.weight",
        "patch_embed.proj.bias": "patch_embeddings.projection.bias",
    }
    own |= {name: state[f"embeddings.{other}"] for name, other in places.items()}
    # versions of transformers name the projections differently; their order is the same
    names = ["norm1", "attn.q", "attn.k", "attn.v", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2"]
    for index in range(2):
        layer = next(value for name, value in theirs.named_modules() if name.endswith(f"layer.{index}"))
        parts = [part for part in layer.modules() if isinstance(part, (nn.Linear, nn.LayerNorm))]
        for kind in ("weight", "bias"):
            found = dict(zip(names, (getattr(part, kind) for part in parts), strict=True))
            found["attn.qkv"] = torch.cat([found.pop(f"attn.{part}") for part in "qkv"])
            own |= {f"blocks.{index}.{name}.{kind}": value for name, value in found.items()}
            own[f"norm.{kind}"] = state[f"layernorm.{kind}"]
        for scale in (1, 2):
            own[f"blocks.{index}.ls{scale}.gamma"] = getattr(layer, f"layer_scale{scale}").lambda1
    made = DINOv2(WIDTH, 2, 2, trained_at=56)
    made.load_state_dict(own)
    return made


@pytest.mark.parametrize("size", [(56, 56), (28, 42), (84, 70)])
@torch.no_grad()
def test_is_the_original(size: tuple[int, int]):
    theirs, pixels = original(), torch.randn(2, 3, *size)
    expected = theirs(pixels).last_hidden_state[:, 5:]
    torch.testing.assert_close(ours(theirs)(pixels), expected, atol=1e-5, rtol=1e-5)


def cubic(distance: Tensor) -> Tensor:
    """Keys' kernel with torch's parameter."""
    a, x = -0.75, distance.abs()
    near, far = (a + 2) * x**3 - (a + 3) * x**2 + 1, a * (x**3 - 5 * x**2 + 8 * x - 4)
    return torch.where(x <= 1, near, torch.where(x < 2, far, 0))


def test_with_an_offset_cells_are_read_by_the_ratio_of_the_sides():
    made = DINOv2(4, 0, 1, trained_at=14 * 12, registers=0, offset=0.1)
    torch.manual_seed(0)
    with torch.no_grad():
        learned = made.pos_embed.copy_(torch.randn(1, 145, 4))[0, 1:].unflatten(0, (12, 12))
        found = made.positions(18, 13)[0, 1:].unflatten(0, (18, 13))
    down, across = (
        cubic(((torch.arange(side) + 0.5) * (12 / (side + 0.1)) - 0.5)[:, None] - torch.arange(12)) for side in (18, 13)
    )
    expected = torch.einsum("hi,wj,ijc->hwc", down, across, learned)
    # at the border torch repeats the last cell
    torch.testing.assert_close(found[3:-3, 2:-2], expected[3:-3, 2:-2], atol=1e-4, rtol=1e-4)


def test_special_tokens():
    assert DINOv2(16, 0, 2, trained_at=28).special == 5
    assert DINOv2(16, 0, 2, trained_at=28, registers=0).special == 1
    assert "mask_token" not in DINOv2(16, 0, 2, trained_at=28, mask_token=False).state_dict()
