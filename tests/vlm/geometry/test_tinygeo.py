from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from gnomon.vlm.geometry.base import GeometryInput
from gnomon.vlm.geometry.tinygeo import TinyGeo


def scene(side: int = 64) -> GeometryInput:
    images = torch.rand(1, 2, 3, side, side, generator=torch.Generator().manual_seed(0))
    return GeometryInput(images, torch.ones(1, 2, dtype=torch.bool))


@pytest.mark.parametrize(("size", "parameters"), [("xs", 1_218_688), ("s", 3_603_008)])
def test_parameters_without_heads(size: str, parameters: int):
    made = TinyGeo(size, heads=())
    assert sum(p.numel() for p in made.parameters()) == parameters
    with pytest.raises(ValueError, match="predicts nothing but tokens, not depth"):
        made.measure(scene(), heads=["depth"])


@pytest.mark.parametrize(("size", "side", "cells", "width"), [("xs", 64, 8, 256), ("s", 112, 14, 384)])
def test_sizes(size: str, side: int, cells: int, width: int):
    out = TinyGeo(size, heads=()).measure(scene(side))
    assert out.grid == (cells, cells) and out.tokens.shape == (1, 2, cells**2, width)
    assert out.special.shape == (1, 2, 5, width)


def test_every_parameter_learns():
    made = TinyGeo(frozen=False)
    torch.nn.init.normal_(made.aggregator.camera_token)
    out = made.measure(scene(), heads=made.heads)
    values = (out.depth, out.depth_confidence, out.points, out.points_confidence, out.pose)
    sum((value * torch.randn_like(value)).sum() for value in values).backward()
    assert [name for name, p in made.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_a_token_paints_its_own_square():
    """The linear map to pixels is laid out as pixel shuffle has it, row by row."""
    made = TinyGeo()
    head, tokens = made.depth_head, torch.randn(1, 1, 6, 256)
    before = head(tokens, size=(16, 24))
    tokens[0, 0, 4] += 1
    changed = (head(tokens, size=(16, 24)) != before).any(-1)[0, 0].nonzero()
    # cell (1, 1), and a seam of two pixels from two convolutions
    assert changed.amin(0).tolist() == [6, 6] and changed.amax(0).tolist() == [15, 17]


def test_cameras_begin_near_the_identity():
    torch.manual_seed(0)
    out = TinyGeo().measure(scene(), heads=["camera"])
    torch.testing.assert_close(out.pose[0, 0], torch.tensor([0, 0, 0, 0, 0, 0, 1, 1, 1.0]), atol=0.6, rtol=0)


def test_weights(tmp_path: Path):
    made = TinyGeo()
    save_file(made.state_dict(), tmp_path / "model.safetensors")
    again = TinyGeo(weights=str(tmp_path))
    assert torch.equal(again.measure(scene()).tokens, made.measure(scene()).tokens)
    bare = TinyGeo(weights=str(tmp_path), heads=())
    assert torch.equal(bare.measure(scene()).tokens, made.measure(scene()).tokens)
    assert "weights" not in again.spec()["init_args"]
    with pytest.raises(ValueError, match="do not fit TinyGeo: they lack aggregator"):
        TinyGeo("s", weights=str(tmp_path), heads=made.heads)


def test_options_that_do_not_exist():
    with pytest.raises(ValueError, match="sizes xs, s, not 'xl'"):
        TinyGeo("xl")
    with pytest.raises(ValueError, match="no head 'colour'; choose among depth, points and camera"):
        TinyGeo(heads=["colour"])
