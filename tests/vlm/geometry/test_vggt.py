"""The published architecture: its counts, its names, and how its weights are read."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from gnomon.vlm.geometry.base import GeometryInput
from gnomon.vlm.geometry.vggt import VGGT

TINY = {
    "width": 32,
    "embed_depth": 2,
    "depth": 3,
    "attention_heads": 2,
    "trained_at": 56,
    "taps": (0, 1, 2, 2),
    "features": 8,
    "channels": (4, 8, 8, 8),
}


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def scene() -> GeometryInput:
    images = torch.rand(1, 3, 3, 28, 42, generator=torch.Generator().manual_seed(0))
    return GeometryInput(images, torch.ones(1, 3, dtype=torch.bool))


@pytest.fixture(scope="module")
def published() -> VGGT:
    with torch.device("meta"):
        return VGGT()


def test_parameters(published: VGGT):
    embed = count(published.aggregator.patch_embed)
    assert embed == 304_372_736
    assert count(published.aggregator) - embed == 604_739_584
    assert count(published.camera_head) == 216_174_610
    assert count(published.depth_head) == 32_654_562
    assert count(published.point_head) == 32_654_628
    assert (published.width, published.patch, published.layer_count) == (2048, 14, 24)


def test_names_and_shapes_are_the_published_ones(published: VGGT):
    shapes = {name: tuple(value.shape) for name, value in published.state_dict().items()}
    expected = {
        "aggregator.camera_token": (1, 2, 1, 1024),
        "aggregator.register_token": (1, 2, 4, 1024),
        "aggregator.patch_embed.cls_token": (1, 1, 1024),
        "aggregator.patch_embed.pos_embed": (1, 1370, 1024),
        "aggregator.patch_embed.register_tokens": (1, 4, 1024),
        "aggregator.patch_embed.mask_token": (1, 1024),
        "aggregator.patch_embed.patch_embed.proj.weight": (1024, 3, 14, 14),
        "aggregator.patch_embed.blocks.23.attn.qkv.weight": (3072, 1024),
        "aggregator.patch_embed.blocks.0.ls1.gamma": (1024,),
        "aggregator.patch_embed.norm.weight": (1024,),
        "aggregator.frame_blocks.0.attn.q_norm.weight": (64,),
        "aggregator.global_blocks.23.mlp.fc1.weight": (4096, 1024),
        "camera_head.empty_pose_tokens": (1, 1, 9),
        "camera_head.poseLN_modulation.1.weight": (6144, 2048),
        "camera_head.trunk.3.ls2.gamma": (2048,),
        "camera_head.pose_branch.fc1.weight": (1024, 2048),
        "depth_head.projects.3.weight": (1024, 2048, 1, 1),
        "depth_head.resize_layers.0.weight": (256, 256, 4, 4),
        "depth_head.resize_layers.3.weight": (1024, 1024, 3, 3),
        "depth_head.scratch.layer1_rn.weight": (256, 256, 3, 3),
        "depth_head.scratch.refinenet1.resConfUnit1.conv1.weight": (256, 256, 3, 3),
        "depth_head.scratch.output_conv2.2.weight": (2, 32, 1, 1),
        "point_head.scratch.output_conv2.2.weight": (4, 32, 1, 1),
    }
    assert {name: shapes.get(name) for name in expected} == expected
    assert not any("refinenet4.resConfUnit1" in name or "camera_head.trunk.0.attn.q_norm" in name for name in shapes)
    # 24 blocks of 14 tensors and 8 more; 48 blocks of 18 and 2 tokens; 4 blocks of 14 and 13 more; two DPTs of 62
    assert len(shapes) == (24 * 14 + 8) + (48 * 18 + 2) + (4 * 14 + 13) + 2 * 62


def test_published_weights_are_read_without_the_tracking_head(tmp_path: Path):
    torch.manual_seed(0)
    made = VGGT(**TINY)
    save_file({**made.state_dict(), "track_head.fmap.weight": torch.ones(1)}, tmp_path / "model.safetensors")
    again = VGGT(weights=str(tmp_path), **TINY)
    heads = ("depth", "points", "camera")
    out, expected = (encoder.measure(scene(), heads=heads) for encoder in (again, made))
    for field in ("tokens", "special", "depth", "points", "pose"):
        assert torch.equal(getattr(out, field), getattr(expected, field))
    assert not any(p.requires_grad or p.is_meta for p in again.parameters())
    assert out.rounds.shape == (4, 1, 3, 9) and torch.equal(out.rounds[-1], out.pose)


def test_heads_that_are_not_wanted_are_not_read(tmp_path: Path):
    made = VGGT(**TINY)
    save_file(made.state_dict(), tmp_path / "model.safetensors")
    again = VGGT(weights=str(tmp_path), heads=["depth"], **TINY)
    assert again.point_head is again.camera_head is None
    assert torch.equal(again.measure(scene()).tokens, made.measure(scene()).tokens)


def test_weights_of_another_configuration_are_refused(tmp_path: Path):
    made = VGGT(**TINY)
    save_file(made.state_dict(), tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"do not fit VGGT: they lack aggregator\.frame_blocks\.3\..* more such"):
        VGGT(weights=str(tmp_path), **{**TINY, "depth": 4})
    with pytest.raises(ValueError, match=r"have aggregator\.patch_embed\.pos_embed of shape \(1, 17, 32\) instead of"):
        VGGT(weights=str(tmp_path), **{**TINY, "trained_at": 70})


def test_points_and_depth_come_from_the_layers_that_are_tapped():
    made = VGGT(**TINY)
    out = made.measure(scene(), layers=[0, 1, 2], heads=["depth"])
    taps = [out.layers[layer] for layer in (0, 1, 2, 2)]
    logits = made.depth_head(*taps, size=(28, 42))
    torch.testing.assert_close(out.depth, logits[..., 0].exp())
    torch.testing.assert_close(out.depth_confidence, 1 + logits[..., 1].exp())
