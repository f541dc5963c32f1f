"""The tower against transformers' own, and its scores against the whole attention matrix."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import apply_rotary_pos_emb_vision

from gnomon.vlm.encoders.base import Encoder
from gnomon.vlm.encoders.qwen2_5_vl import Qwen2_5VL
from gnomon.vlm.part import build

CONFIG = {
    "depth": 4,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_heads": 2,
    "out_hidden_size": 24,
    "patch_size": 4,
    "window_size": 16,
    "fullatt_block_indexes": [1, 3],
}
ALL = frozenset({"saliency", "keys", "wide_saliency", "wide_keys"})


@pytest.fixture
def tower() -> Qwen2_5VL:
    torch.manual_seed(0)
    encoder = Qwen2_5VL(CONFIG).eval()
    for weight in encoder.parameters():
        if weight.dim() > 1:
            torch.nn.init.normal_(weight, std=0.2)
    return encoder


def pixels(height: int, width: int, count: int = 3) -> Tensor:
    return torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def original(encoder: Qwen2_5VL, images: Tensor) -> Tensor:
    """transformers' own forward; blocks of 2 x 2 patches after another, as its image processor has them."""
    count, _, height, width = images.shape
    rows = []
    for image in images:
        for top in range(0, height, 8):
            for left in range(0, width, 8):
                for y, x in ((0, 0), (0, 4), (4, 0), (4, 4)):
                    patch = image[:, top + y : top + y + 4, left + x : left + x + 4]
                    rows.append(torch.stack([patch, patch], 1).flatten())
    out = encoder.tower(torch.stack(rows), grid_thw=torch.tensor([[1, height // 4, width // 4]] * count))
    return getattr(out, "pooler_output", out).unflatten(0, (count, -1))


@pytest.mark.parametrize("size", [(48, 40), (8, 8), (16, 56), (8, 64), (24, 24)])
@torch.no_grad()
def test_the_bits_of_transformers(tower, size):
    images = pixels(*size)
    found = tower(images)
    assert found.grid == [(size[0] // 8, size[1] // 8)] * 3
    assert torch.equal(found.tokens, original(tower, images))
    assert torch.equal(tower(images, ALL).tokens, found.tokens), "looking changes nothing"
    torch.testing.assert_close(tower(images[1:2]).tokens[0], found.tokens[1])


@pytest.mark.parametrize("size", [(24, 40), (48, 16)])
@torch.no_grad()
def test_scores_are_those_of_the_last_block_that_sees_everything(tower, size):
    images = pixels(*size, count=2)
    seen = {}

    def look(module, args, kwargs):
        seen["hidden"], seen["tables"] = args[0] if args else kwargs["hidden_states"], kwargs["position_embeddings"]

    with tower.tower.blocks[3].attn.register_forward_pre_hook(look, with_kwargs=True):
        original(tower, images)
    qkv = tower.tower.blocks[3].attn.qkv(seen["hidden"]).unflatten(1, (3, 2, 16))
    queries, keys = apply_rotary_pos_emb_vision(qkv[:, 0], qkv[:, 1], *seen["tables"])
    # where the patches stand in the original's order: windows of 2 x 2 tokens of 2 x 2 patches, row by row
    h, w = size[0] // 8, size[1] // 8
    order = sorted(range(h * w), key=lambda i: (i // w // 2, i % w // 2, i // w, i % w))
    found = tower(images, ALL)
    for i in range(2):
        part = slice(i * h * w * 4, (i + 1) * h * w * 4)
        q, k = queries[part], keys[part]
        attention = torch.einsum("ahd,bhd->hab", q, k).div(16**0.5).softmax(-1)
        wide = (q.flatten(1) @ k.flatten(1).T).div(32**0.5).softmax(-1)
        for name, patches in {
            "saliency": attention.mean((0, 1)),
            "wide_saliency": wide.mean(0),
            "keys": k.mean(1),
            "wide_keys": k.flatten(1),
        }.items():
            tokens = patches.unflatten(0, (-1, 4)).mean(1)
            expected = torch.empty_like(tokens)
            expected[torch.tensor(order)] = tokens
            torch.testing.assert_close(getattr(found, name)[i], expected, atol=1e-6, rtol=1e-4)


def test_windows_do_not_see_each_other():
    torch.manual_seed(0)
    encoder = Qwen2_5VL({**CONFIG, "depth": 2, "fullatt_block_indexes": [1]}).eval()
    encoder.tower.blocks = encoder.tower.blocks[:1]
    images = pixels(16, 48, count=1)
    changed = images.clone()
    changed[..., 20] += 1
    with torch.no_grad():
        moved = (encoder(images).tokens - encoder(changed).tokens)[0].abs().sum(1).view(2, 6) > 1e-6
    assert moved.any(0).tolist() == [False, False, True, True, False, False]


def test_spec_and_mistakes(tower):
    again = build(tower.spec(), Encoder)
    again.load_state_dict(tower.state_dict())
    assert (again.stride, again.width) == (8, 24)
    assert torch.equal(again.eval()(pixels(16, 24)).tokens, tower(pixels(16, 24)).tokens)
    with pytest.raises(ValueError, match=r"\(12, 16\) is not a multiple of the tower's 8"):
        tower(pixels(12, 16))
    with pytest.raises(ValueError, match="name one that exists"):
        Qwen2_5VL({**CONFIG, "fullatt_block_indexes": [4]})


def test_everything_gets_a_gradient(tower):
    (tower(pixels(24, 16)).tokens ** 2).sum().backward()
    assert [name for name, p in tower.named_parameters() if p.grad is None or not p.grad.any()] == []
