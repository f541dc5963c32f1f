"""Against transformers' own models on the same random weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F
from transformers import AutoModelForDepthEstimation, DepthAnythingConfig, DPTConfig

from gnomon.vlm.geometry.base import GeometryInput
from gnomon.vlm.geometry.depth_only import DepthOnly

VIT = {"hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2, "image_size": 56, "patch_size": 14}
NECK = {"neck_hidden_sizes": [4, 8, 8, 8], "fusion_hidden_size": 8}
TRUNK = {"model_type": "dinov2", **VIT, "out_indices": [1, 2, 3, 4], "reshape_hidden_states": False}


def configuration(kind: str = "relative") -> Any:
    torch.manual_seed(0)
    if kind == "dpt":
        vit = {**VIT, "image_size": 64, "patch_size": 16, "intermediate_size": 32}
        return DPTConfig(**vit, **NECK, backbone_out_indices=[0, 1, 2, 3], is_hybrid=False)
    return DepthAnythingConfig(
        backbone_config=TRUNK,
        reassemble_hidden_size=16,
        **NECK,
        head_hidden_size=8,
        depth_estimation_type=kind,
        max_depth=20 if kind == "metric" else 1,
    )


def scene(size: tuple[int, int] = (28, 42)) -> GeometryInput:
    images = torch.rand(1, 2, 3, *size, generator=torch.Generator().manual_seed(0))
    return GeometryInput(images, torch.ones(1, 2, dtype=torch.bool))


@pytest.mark.parametrize("kind", ["relative", "metric", "dpt"])
@torch.no_grad()
def test_is_the_original(kind: str, tmp_path: Path):
    original = AutoModelForDepthEstimation.from_config(configuration(kind)).eval()
    original.save_pretrained(tmp_path)
    given = scene((64, 64)) if kind == "dpt" else scene()
    out = DepthOnly(str(tmp_path)).measure(given, layers=[0], heads=["depth"])
    mean, std = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]])[..., None, None]
    theirs = original((given.images[0] - mean) / std, output_hidden_states=True)
    expected = theirs.predicted_depth if kind == "metric" else 1 / theirs.predicted_depth.clamp(min=1e-3)
    torch.testing.assert_close(out.depth[0], expected)
    for state, tokens in ((-1, out.tokens), (1, out.layers[0])):
        normed = F.layer_norm(theirs.hidden_states[state][:, 1:], (16,))
        torch.testing.assert_close(tokens[0], normed, atol=1e-5, rtol=1e-5)
    assert (out.scale is not None) == (kind == "metric")


def test_points_are_back_projected():
    made, given = DepthOnly(config=configuration("metric").to_dict()), scene()
    lens = torch.tensor([[50.0, 0, 20], [0, 60, 15], [0, 0, 1]]).expand(1, 2, 3, 3)
    out = made.measure(replace(given, intrinsics=lens), heads=["depth", "points"])
    depth = out.depth[0, 1, 10, 30]
    place = torch.tensor([(30.5 - 20) / 50, (10.5 - 15) / 60, 1]) * depth
    torch.testing.assert_close(out.points[0, 1, 10, 30], place)
    assert out.frame == "own_camera"
    with pytest.raises(ValueError, match="only of views whose intrinsics are known"):
        made.measure(given, heads=["points"])


def test_the_way_pictures_are_normed_is_kept(tmp_path: Path):
    model = AutoModelForDepthEstimation.from_config(configuration())
    model.save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text('{"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}')
    made = DepthOnly(str(tmp_path))
    assert made.mean == made.std == (0.5, 0.5, 0.5)
    assert DepthOnly(str(tmp_path), mean=[0, 0, 0]).mean == (0, 0, 0)
    again = DepthOnly(**made.spec()["init_args"])
    again.load_state_dict(made.state_dict())
    assert torch.equal(again.measure(scene()).tokens, made.measure(scene()).tokens)


def test_what_it_cannot_take(tmp_path: Path):
    with pytest.raises(ValueError, match="either path or config"):
        DepthOnly()
    with pytest.raises(ValueError, match="'dinov2' that DepthOnly cannot take; use one of depth_anything, dpt"):
        DepthOnly(config=TRUNK)
    with pytest.raises(ValueError, match="cannot be loaded"):
        DepthOnly(str(tmp_path / "nothing"))
    dpt = DepthOnly(config=configuration("dpt").to_dict())
    assert dpt.measure(scene((32, 48))).tokens.shape == (1, 2, 6, 16)
    with pytest.raises(ValueError, match="square views, not of 32x48"):
        dpt.measure(scene((32, 48)), heads=["depth"])
