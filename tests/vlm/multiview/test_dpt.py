"""Against the neck and head of transformers' Depth Anything, which is DPT without positions and norm."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from transformers import DepthAnythingConfig, DepthAnythingForDepthEstimation

from gnomon.vlm.multiview.dpt import DPT, ResidualUnit, uv_embedding

CHANNELS = (4, 8, 12, 16)


def original() -> DepthAnythingForDepthEstimation:
    vit = {"hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2, "image_size": 56, "patch_size": 14}
    config = DepthAnythingConfig(
        backbone_config={"model_type": "dinov2", **vit, "out_indices": [1, 2, 3, 4], "reshape_hidden_states": False},
        reassemble_hidden_size=16,
        neck_hidden_sizes=list(CHANNELS),
        fusion_hidden_size=8,
        head_hidden_size=32,
        depth_estimation_type="metric",
        max_depth=1,
    )
    torch.manual_seed(0)
    made = DepthAnythingForDepthEstimation(config).eval()
    for parameter in made.parameters():
        nn.init.normal_(parameter, std=0.1)
    return made


def ours(theirs: DepthAnythingForDepthEstimation) -> DPT:
    made = DPT(16, 1, features=8, channels=CHANNELS, uv=False, normed=False, rectified=False)
    pairs = {"scratch.output_conv1": theirs.head.conv1, "scratch.output_conv2.0": theirs.head.conv2}
    pairs["scratch.output_conv2.2"] = theirs.head.conv3
    for level in range(4):
        stage = theirs.neck.reassemble_stage.layers[level]
        pairs[f"projects.{level}"] = stage.projection
        if level != 2:
            pairs[f"resize_layers.{level}"] = stage.resize
        pairs[f"scratch.layer{level + 1}_rn"] = theirs.neck.convs[level]
        fusion, name = theirs.neck.fusion_stage.layers[3 - level], f"scratch.refinenet{level + 1}"
        pairs[f"{name}.out_conv"] = fusion.projection
        for unit in (1, 2) if level < 3 else (2,):
            for conv in (1, 2):
                layer = getattr(getattr(fusion, f"residual_layer{unit}"), f"convolution{conv}")
                pairs[f"{name}.resConfUnit{unit}.conv{conv}"] = layer
    state = {f"{name}.{key}": value for name, part in pairs.items() for key, value in part.state_dict().items()}
    made.load_state_dict(state)
    return made


@pytest.mark.parametrize("size", [(56, 56), (28, 70)])
@torch.no_grad()
def test_is_the_original(size: tuple[int, int]):
    theirs = original()
    cells = (size[0] // 14, size[1] // 14)
    layers = [torch.randn(3, cells[0] * cells[1], 16) for _ in range(4)]
    # theirs drops a class token
    states = theirs.neck([torch.cat([x[:, :1], x], dim=1) for x in layers], *cells)
    head = theirs.head
    x = nn.functional.interpolate(head.conv1(states[-1]), size=size, mode="bilinear", align_corners=True)
    expected = head.conv3(head.conv2(x).relu())[:, 0]
    got = ours(theirs)(*(x[None] for x in layers), size=size)
    torch.testing.assert_close(got[0, ..., 0], expected, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_views_in_pieces_are_views_at_once():
    torch.manual_seed(0)
    made = DPT(16, 2, features=8, channels=CHANNELS)
    layers = [torch.randn(2, 5, 6, 16) for _ in range(4)]
    whole = made(*layers, size=(28, 42))
    made.chunk = 3
    assert whole.shape == (2, 5, 28, 42, 2)
    torch.testing.assert_close(made(*layers, size=(28, 42)), whole, atol=1e-6, rtol=1e-5)


def test_what_is_added_back_may_have_been_rectified():
    x = torch.tensor([-2.0, 3.0]).view(1, 2, 1, 1)
    for rectified, expected in ((True, [0.0, 3.0]), (False, [-2.0, 3.0])):
        unit = ResidualUnit(2, rectified=rectified)
        for parameter in unit.parameters():
            nn.init.zeros_(parameter)
        assert unit(x).flatten().tolist() == expected


def test_where_a_cell_is():
    """A picture of 30x40 pixels has a diagonal of 50; four cells across it stand at -3, -1, 1, 3 quarters of 0.8."""
    found = uv_embedding((2, 4), 8, size=(30, 40), device="cpu")
    assert found.shape == (8, 2, 4)
    for column, share in enumerate((-0.75, -0.25, 0.25, 0.75)):
        x, y = 0.8 * share, 0.6 * 0.5
        waves = [f(angle) for at in (x, y) for f in (math.sin, math.cos) for angle in (at, at / 10)]
        torch.testing.assert_close(found[:, 1, column], torch.tensor(waves), atol=1e-6, rtol=1e-6)
