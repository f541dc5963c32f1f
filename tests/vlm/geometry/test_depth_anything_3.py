"""The published sizes, names and weights; rays, cameras and metres."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_model
from torch import nn
from torch.nn import functional as F

from gnomon.vlm.geometry.base import GeometryInput
from gnomon.vlm.geometry.depth_anything_3 import DepthAnything3
from gnomon.vlm.layout import Views
from gnomon.vlm.multiview import pose
from gnomon.vlm.survey import in_first, survey

TINY = {
    "width": 32,
    "attention_heads": 2,
    "depth": 6,
    "taps": (1, 3, 4, 5),
    "features": 8,
    "channels": (4, 8, 8, 8),
    "trained_at": 56,
    "camera_heads": 2,
}
SIZE = (28, 42)


def tiny(size: str = "small", **options: Any) -> DepthAnything3:
    torch.manual_seed(0)
    more = {"alternate_from": 2} if size == "small" else {}
    return DepthAnything3(size, args={**TINY, **more}, **options)


def scene(views: int = 3) -> GeometryInput:
    images = torch.rand(1, views, 3, *SIZE, generator=torch.Generator().manual_seed(0))
    return GeometryInput(images, torch.ones(1, views, dtype=torch.bool))


def count(module: nn.Module | None) -> float:
    return 0 if module is None else sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize(
    ("size", "total", "millions"),
    [
        ("small", 34_299_463, (22.06, 3.87, 1.19, 7.18)),
        ("base", 135_366_599, (86.58, 15.39, 4.74, 28.66)),
        ("large", 410_941_767, (304.37, 47.23, 8.41, 50.93)),
        ("giant", 1_320_045_639, (1136.49, 50.11, 18.91, 114.53)),
        ("mono_large", 334_171_394, (304.37, 29.80, 0, 0)),
        ("metric_large", 334_171_394, (304.37, 29.80, 0, 0)),
    ],
)
def test_parameters(size: str, total: int, millions: tuple[float, ...]):
    with torch.device("meta"):
        made = DepthAnything3(size, condition=not size.endswith("_large"))
    assert count(made) == total
    parts = (made.backbone, made.head, made.cam_dec, made.cam_enc)
    assert tuple(round(count(part) / 1e6, 2) for part in parts) == millions


@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
def test_published_names_are_read(tmp_path: Path, suffix: str):
    """`model.` before all, the transformer deeper, a Gaussian head; in safetensors the shared norm stands once."""
    made, whole = tiny(condition=True), nn.Module()
    whole.model = nn.Module()
    whole.model.backbone = nn.Module()
    whole.model.backbone.pretrained = made.backbone
    whole.model.head, whole.model.cam_dec, whole.model.cam_enc = made.head, made.cam_dec, made.cam_enc
    whole.model.gs_head = nn.Linear(1, 1)
    path = str(tmp_path / f"model.{suffix}")
    save_model(whole, path) if suffix == "safetensors" else torch.save(whole.state_dict(), path)
    again, given = tiny(weights=path), scene()
    out, expected = (encoder.measure(given, heads=again.heads) for encoder in (again, tiny()))
    for field in ("tokens", "depth", "rays", "extrinsics"):
        assert torch.equal(getattr(out, field), getattr(expected, field)), field
    assert again.cam_enc is None
    assert tiny(weights=path, heads=()).head is None


def test_a_point_is_origin_plus_depth_times_direction():
    """Where rays are given at the picture's own resolution nothing is between them and the points."""
    made = tiny()

    class Known(nn.Module):
        def forward(self, *taps: torch.Tensor, size: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
            torch.manual_seed(1)
            return torch.randn(1, 3, *size, 2), torch.randn(1, 3, *size, 7)

    made.head = Known()
    out = made.measure(scene(), heads=["depth", "rays", "points"])
    direction, origin = out.rays.split(3, dim=-1)
    torch.testing.assert_close(out.points, origin + out.depth[..., None] * direction, atol=1e-5, rtol=1e-5)


def test_decoded_cameras_are_inverted():
    made, seen = tiny(), []
    made.cam_dec.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    out = made.measure(scene(), heads=["camera"])
    token = seen[0]
    hidden = F.relu(made.cam_dec.backbone[2](F.relu(made.cam_dec.backbone[0](token))))
    encoding = torch.cat([made.cam_dec.fc_t(hidden), made.cam_dec.fc_qvec(hidden)], dim=-1)
    x, y, z, w = F.normalize(encoding[..., 3:], dim=-1).unbind(-1)
    # the first column of a quaternion's rotation is the first row of its inverse
    first = torch.stack([1 - 2 * (y * y + z * z), 2 * (x * y + z * w), 2 * (x * z - y * w)], dim=-1)
    torch.testing.assert_close(out.extrinsics[..., 0, :3], first, atol=1e-5, rtol=1e-5)
    centre = -(out.extrinsics[..., :3].mT @ out.extrinsics[..., 3:])[..., 0]
    torch.testing.assert_close(centre, encoding[..., :3], atol=1e-5, rtol=1e-5)
    again, _ = pose.decode(out.pose, size=SIZE)
    torch.testing.assert_close(again, out.extrinsics, atol=1e-5, rtol=1e-5)


def test_before_the_alternation_views_are_alone_and_after_it_they_are_not():
    made, given = tiny(), scene()
    other = replace(given, images=given.images.clone())
    other.images[:, 2] = 0
    before, after = (made.measure(x, layers=[1, 3]).layers for x in (given, other))
    assert torch.equal(before[1][:, :2], after[1][:, :2])
    assert not torch.allclose(before[3][:, :2], after[3][:, :2])


def test_tokens_are_the_last_local_state_beside_the_normed_one():
    made = tiny()
    layers = made.measure(scene(), layers=[2, 3]).layers
    # block 2 looks within views: both halves are its own state, the second normed
    local, normed = layers[2].chunk(2, dim=-1)
    torch.testing.assert_close(normed, made.backbone.norm(local))
    assert torch.equal(layers[3].chunk(2, dim=-1)[0], local)


def test_given_cameras_have_no_scale_and_no_place_of_their_own():
    made, given = tiny(condition=True), scene()
    torch.manual_seed(0)
    rotation = torch.linalg.qr(torch.randn(1, 4, 3, 3))[0]
    rotation = rotation * torch.linalg.det(rotation)[..., None, None]
    shift = torch.randn(1, 3, 3, 1)
    lens = torch.tensor([[40.0, 0, 21], [0, 40, 14], [0, 0, 1]]).expand(1, 3, 3, 3)
    extrinsics = torch.cat([rotation[:, :3], shift], dim=-1)
    # the world turned and moved, and everything five times as large
    turn, move = rotation[:, 3:], torch.randn(1, 1, 3, 1)
    elsewhere = torch.cat([rotation[:, :3] @ turn, 5 * (rotation[:, :3] @ move + shift)], dim=-1)
    one, two = (
        made.measure(replace(given, extrinsics=cameras, intrinsics=lens)) for cameras in (extrinsics, elsewhere)
    )
    torch.testing.assert_close(one.tokens, two.tokens, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(two.scale, 5 * one.scale)
    centres = -(extrinsics[..., :3].mT @ shift)[0, :, :, 0]
    torch.testing.assert_close(one.scale[0], (centres - centres[0]).norm(dim=-1).median())
    with pytest.raises(ValueError, match="condition needs extrinsics and intrinsics"):
        made.measure(given)


def test_metres_follow_the_focal_length():
    made, given = tiny("metric_large"), scene()
    plain = made.measure(given, heads=["depth"])
    lens = torch.tensor([[500.0, 0, 21], [0, 700, 14], [0, 0, 1]]).expand(1, 3, 3, 3)
    metric = made.measure(replace(given, intrinsics=lens), heads=["depth"])
    torch.testing.assert_close(metric.depth, 2 * plain.depth)
    assert made.metric and plain.scale is None and metric.scale.tolist() == [1]
    assert set(plain.depth_confidence.unique().tolist()) <= {0, 1}


def test_metres_do_not_depend_on_what_else_is_in_the_batch():
    pixels = torch.randint(0, 256, (1, 3, *SIZE), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    lens = torch.tensor([[[600.0, 0, 21], [0, 600, 14], [0, 0, 1]]])
    posed, bare = Views(pixels, [0], lens), Views(pixels, [1])
    found = survey(tiny("metric_large"), [posed, bare], heads={"depth"})
    assert found.scenes == [[0], [1]]
    torch.testing.assert_close(found.outputs[0].depth, 2 * found.outputs[1].depth)


@pytest.mark.parametrize(("reference", "frame"), [("first", "ref_camera"), ("middle", "world")])
@torch.no_grad()
def test_points_come_into_the_first_cameras_frame_whichever_is_the_reference(reference: str, frame: str):
    made, given = tiny(reference=reference), scene()
    found = made.measure(given, heads=["points", "camera"])
    assert found.frame == frame
    if frame == "world":
        first = found.extrinsics[0, 0]
        moved = found.points @ first[:, :3].T + first[:, 3]
        torch.testing.assert_close(in_first(found, given, name="it"), moved)
        with pytest.raises(ValueError, match=r"it has its points in a world of its own .* build it with its camera"):
            in_first(replace(found, extrinsics=None), given, name="it")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"size": "huge"}, "small, base, .* not 'huge'"),
        ({"size": "mono_large", "heads": ["camera"]}, "no head 'camera'; choose among depth"),
        ({"size": "mono_large", "condition": True}, "sees each view alone"),
        ({"reference": "last"}, "'last' is no way .* first, middle, saddle_balanced"),
        ({"cameras": "guessed"}, "'guessed' is no way .* decoder, rays"),
        ({"args": {"colour": 1}}, "size large has no such option: .*colour"),
    ],
)
def test_options_that_do_not_exist(options: dict[str, Any], said: str):
    with torch.device("meta"), pytest.raises(ValueError, match=said):
        DepthAnything3(**options)
