"""The published architecture, what makes points of its decoders, and that no view is special."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from gnomon.vlm.geometry.base import GeometryInput
from gnomon.vlm.geometry.pi3 import Pi3

TINY = {"width": 32, "embed_depth": 2, "depth": 4, "attention_heads": 2, "trained_at": 56}
TINY |= {"decoder_width": 16, "camera_width": 12}
HEADS = ("depth", "points", "camera")


def tiny(**options) -> Pi3:
    torch.manual_seed(0)
    return Pi3(**TINY, **options)


def scene(views: int = 3) -> GeometryInput:
    images = torch.rand(1, views, 3, 28, 42, generator=torch.Generator().manual_seed(0))
    return GeometryInput(images, torch.ones(1, views, dtype=torch.bool))


def test_parameters_and_names_are_the_published_ones():
    with torch.device("meta"):
        made = Pi3()
    shapes = {name: tuple(value.shape) for name, value in made.state_dict().items()}
    assert sum(p.numel() for p in made.parameters()) == 958_696_732
    expected = {
        "register_token": (1, 1, 5, 1024),
        "encoder.register_tokens": (1, 4, 1024),
        "decoder.35.attn.q_norm.weight": (64,),
        "point_decoder.projects.weight": (1024, 2048),
        "conf_decoder.blocks.4.mlp.fc2.weight": (1024, 4096),
        "camera_decoder.linear_out.weight": (512, 1024),
        "point_head.proj.weight": (588, 1024),
        "conf_head.proj.weight": (196, 1024),
        "camera_head.res_conv.1.res_conv3.weight": (512, 512),
        "camera_head.more_mlps.2.bias": (512,),
        "camera_head.fc_rot.weight": (9, 512),
    }
    assert {name: shapes.get(name) for name in expected} == expected
    assert len(shapes) == 1208 and "encoder.mask_token" not in shapes


def test_published_weights_are_read_with_and_without_decoders(tmp_path: Path):
    made = tiny()
    mean = {"image_mean": torch.zeros(1, 3, 1, 1), "image_std": torch.ones(1, 3, 1, 1)}
    save_file({**made.state_dict(), **mean}, tmp_path / "model.safetensors")
    again, bare = (Pi3(**TINY, weights=str(tmp_path), **options) for options in ({}, {"heads": ()}))
    expected = made.measure(scene(), heads=HEADS)
    assert torch.equal(again.measure(scene(), heads=HEADS).points, expected.points)
    assert torch.equal(bare.measure(scene()).tokens, expected.tokens)
    assert not any(name.startswith(("point", "conf", "camera")) for name in bare.state_dict())


def test_no_view_is_special():
    made, given = tiny(), scene(4)
    order = [2, 0, 3, 1]
    turned = GeometryInput(given.images[:, order], given.valid)
    out, again = (made.measure(x, heads=HEADS) for x in (given, turned))
    for field in ("tokens", "special", "depth", "points", "extrinsics"):
        torch.testing.assert_close(getattr(again, field), getattr(out, field)[:, order], atol=1e-4, rtol=1e-4)


def test_points_are_the_depth_seen_by_the_cameras():
    """A point of the world has the depth of its pixel, in its own camera."""
    out = tiny().measure(scene(), heads=HEADS)
    rotation, shift = out.extrinsics[..., :3], out.extrinsics[..., 3]
    seen = torch.einsum("bsij,bshwj->bshwi", rotation, out.points) + shift[:, :, None, None]
    torch.testing.assert_close(seen[..., 2], out.depth, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(rotation @ rotation.mT, torch.eye(3).expand(1, 3, 3, 3), atol=1e-5, rtol=0)
    torch.testing.assert_close(torch.linalg.det(rotation), torch.ones(1, 3))
    assert out.frame == "world" and ((out.depth_confidence > 0) & (out.depth_confidence < 1)).all()


@pytest.mark.parametrize("mirrored", [False, True])
def test_the_nearest_rotation(mirrored: bool):
    """A rotation is its own; of a mirrored one, a rotation comes back all the same."""
    torch.manual_seed(1)
    turn = torch.linalg.qr(torch.randn(3, 3))[0]
    turn = turn * torch.linalg.det(turn) * (-1 if mirrored else 1)
    made = tiny()
    nn.init.zeros_(made.camera_head.fc_rot.weight)
    with torch.no_grad():
        made.camera_head.fc_rot.bias.copy_(3 * turn.flatten())
    rotation = made.measure(scene(), heads=["camera"]).extrinsics[0, 0, :, :3].T
    torch.testing.assert_close(torch.linalg.det(rotation), torch.tensor(1.0))
    assert torch.allclose(rotation, turn, atol=1e-5) != mirrored


def test_the_lens_is_read_off_the_points():
    """Where x / z grows by 1 / f per pixel from the centre, the focal length is f."""
    made, size = tiny(), (28, 42)
    y, x = torch.meshgrid(torch.arange(28) + 0.5, torch.arange(42) + 0.5, indexing="ij")
    ahead = torch.stack([(x - 21) / 60, (y - 14) / 50, torch.ones(size)], dim=-1)

    class Known(nn.Module):
        def forward(self, patches: torch.Tensor, *, grid: tuple[int, int]) -> torch.Tensor:
            return ahead.expand(len(patches), -1, -1, -1)

    made.point_head = Known()
    lens = made.measure(scene(), heads=["camera"]).intrinsics[0, 1]
    torch.testing.assert_close(lens, torch.tensor([[60.0, 0, 21], [0, 50, 14], [0, 0, 1]]))


def test_heads_that_do_not_exist():
    with pytest.raises(ValueError, match="no head 'colour'"):
        Pi3(heads=["colour"])
