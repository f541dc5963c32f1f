"""The walk over blocks: the models' own forward; masks where tokens leave, copies where they merge."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from gnomon.vlm.blocks import reduced, tower_of
from gnomon.vlm.encoders.base import Encoder
from gnomon.vlm.encoders.hf import HFVision
from gnomon.vlm.encoders.timm import Timm
from gnomon.vlm.plan import ReductionPlan
from gnomon.vlm.reduction.base import ReduceContext, Stage, TokenReducer
from gnomon.vlm.taps import NAMES

SMALL = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 3, "num_heads": 2}
VISION = {"hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 48}
VISION |= {"image_size": 32, "patch_size": 8}

MAKE = {
    "vit": lambda layer: Timm("vit_tiny_patch16_224", layer=layer, args=SMALL),
    "timm siglip": lambda layer: Timm("vit_base_patch16_siglip_224", layer=layer, args=SMALL),
    "timm registers": lambda layer: Timm("vit_small_patch14_reg4_dinov2", layer=layer, args=SMALL),
    "timm clip": lambda layer: Timm("vit_base_patch16_clip_224", layer=layer, args=SMALL),
    "timm two tokens": lambda layer: Timm("deit_tiny_distilled_patch16_224", layer=layer, args=SMALL),
    **{
        kind: lambda layer, kind=kind: HFVision(config={"model_type": kind, **VISION}, layer=layer)
        for kind in ("clip_vision_model", "siglip_vision_model", "dinov2", "dinov2_with_registers")
    },
}
towers = pytest.mark.parametrize("name", MAKE)


def made(name: str, layer: int = -1) -> Encoder:
    torch.manual_seed(0)
    return MAKE[name](layer).eval()


def images(count: int = 2, side: int = 32) -> Tensor:
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(1))


class Leaving(TokenReducer):
    """Drops the same cells of every image (or, as rows, others of each) before the first block."""

    stage = Stage.PIXEL

    def __init__(self, kept: list[list[bool]]) -> None:
        super().__init__(0.5)
        self.kept = kept

    def plan(self, ctx: ReduceContext) -> ReductionPlan:
        return ReductionPlan.keep_where(torch.tensor(self.kept))


class Merging(TokenReducer):
    """Merges the second cell into the first in one block."""

    stage = Stage.VIT_LAYER

    def __init__(self, layer: int) -> None:
        super().__init__(0.5)
        self.layers = (layer,)

    def plan(self, ctx: ReduceContext) -> ReductionPlan:
        count = ctx.feats.shape[1]
        owner = (torch.arange(count) - 1).clamp(min=0).expand(len(ctx.feats), -1)
        return ReductionPlan.merge(owner, count - 1, ctx.size)


@towers
@pytest.mark.parametrize("layer", [-1, -2])
@pytest.mark.parametrize("side", [32, 48])
@torch.no_grad()
def test_with_nothing_plugged_in_it_is_the_models_own_forward(name: str, layer: int, side: int):
    encoder, pixels = made(name, layer), images(side=side)
    theirs, ours = encoder(pixels, NAMES), reduced(encoder, pixels, pixels, [], NAMES)
    assert torch.equal(ours.tokens, theirs.tokens) and ours.grid == theirs.grid and ours.plan is None
    assert ours.cls is None if theirs.cls is None else torch.equal(ours.cls, theirs.cls)
    for field in NAMES:
        assert torch.equal(getattr(ours, field), getattr(theirs, field))


@towers
def test_gradients_are_the_models_own(name: str):
    encoder, pixels = made(name), images()
    encoder(pixels).tokens.square().sum().backward()
    theirs = {n: p.grad.clone() for n, p in encoder.named_parameters() if p.grad is not None}
    encoder.zero_grad()
    reduced(encoder, pixels, pixels, []).tokens.square().sum().backward()
    assert {n for n, p in encoder.named_parameters() if p.grad is not None} == theirs.keys()
    for n, p in encoder.named_parameters():
        if n in theirs:
            torch.testing.assert_close(p.grad, theirs[n])


@pytest.mark.parametrize(
    "name",
    ["resnet18", "swin_tiny_patch4_window7_224", "convnext_atto", "eva02_tiny_patch14_224", "vit_base_patch16_rpn_224"],
)
def test_other_networks_are_not_guessed_at(name: str):
    """Convolutions, windows, rotary positions, and a vision transformer with another order of norms."""
    args = {"depth": 1} if name.startswith(("eva", "vit")) else {}
    assert tower_of(Timm(name, args=args)) is None


@pytest.mark.parametrize("name", ["clip_vision_model", "siglip_vision_model"])
@torch.no_grad()
def test_leaving_equals_being_hidden_in_transformers_own_model(name: str):
    encoder, pixels = made(name), images()
    kept = torch.rand(16, generator=torch.Generator().manual_seed(2)) > 0.4
    found = reduced(encoder, pixels, pixels, [Leaving([kept.tolist()] * 2)])
    seen = F.pad(kept, (encoder.prefix, 0), value=True)
    hidden = encoder.tower.embeddings(pixels)
    hidden = encoder.tower.pre_layrnorm(hidden) if name.startswith("clip") else hidden
    mask = torch.zeros(1, 1, len(seen), len(seen)).masked_fill(~seen, float("-inf"))
    hidden = encoder.tower.encoder(inputs_embeds=hidden, attention_mask=mask).last_hidden_state
    hidden = hidden if name.startswith("clip") else encoder.tower.post_layernorm(hidden)
    torch.testing.assert_close(found.tokens, hidden[:, encoder.prefix :][:, kept], atol=1e-5, rtol=1e-4)
    assert found.plan.index[0, :, 0].tolist() == kept.nonzero()[:, 0].tolist()


@towers
@torch.no_grad()
def test_images_that_keep_different_numbers(name: str):
    encoder, pixels = made(name), images(3)
    kept = [[True] * 16, [True, False] * 8, [False] * 12 + [True] * 4]
    together = reduced(encoder, pixels, pixels, [Leaving(kept), Merging(1)], NAMES)
    assert together.counts == [15, 7, 3]
    for i in range(3):
        alone = reduced(encoder, pixels[i : i + 1], pixels[i : i + 1], [Leaving(kept[i : i + 1]), Merging(1)], NAMES)
        count = together.counts[i]
        torch.testing.assert_close(together.tokens[i, :count], alone.tokens[0], atol=1e-5, rtol=1e-4)
        assert not together.tokens[i, count:].any()
        torch.testing.assert_close(together.cells()[i, :count], alone.cells()[0])
        for field in NAMES:
            value = getattr(together, field)[i, :count]
            torch.testing.assert_close(value, getattr(alone, field)[0], atol=1e-5, rtol=1e-4)


@towers
@torch.no_grad()
def test_a_merged_token_is_attended_to_like_its_copies(name: str):
    """Merging two cells that are equal changes nothing for the others: size makes up for the missing one."""
    encoder = made(name)
    tower = tower_of(encoder)
    x = tower.embed(images())
    front = tower.prefix
    x[:, front + 1] = x[:, front]
    whole, short = x, torch.cat([x[:, : front + 1], x[:, front + 2 :]], 1)
    size = torch.ones(2, short.shape[1])
    size[:, front] = 2
    for block in tower.blocks:
        whole, short = block.feed(block.attend(whole, None)[0]), block.feed(block.attend(short, size)[0])
    torch.testing.assert_close(short[:, : front + 1], whole[:, : front + 1], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(short[:, front + 1 :], whole[:, front + 2 :], atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_the_plan_tells_of_which_cells_a_token_is_made():
    encoder, pixels = made("vit"), images(1)
    kept = [[True, False, True, True] * 4]
    found = reduced(encoder, pixels, pixels, [Leaving(kept), Merging(0), Merging(2)])
    # cells 0 and 2 merge in the first block, and cell 3 joins them in the last
    assert found.plan.index[0, 0, :3].tolist() == [0, 2, 3]
    torch.testing.assert_close(found.plan.weight[0, 0, :3], torch.full((3,), 1 / 3))
    assert found.cells()[0, 0].tolist() == pytest.approx([0, 5 / 3])
    assert found.plan.anchor[0].tolist() == [0, 4, 6, 7, 8, 10, 11, 12, 14, 15]
