"""What every way of attending across views promises, inside the encoders that it makes cheaper."""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch

from gnomon.cli.methods import files
from gnomon.vlm.crossview.fastvggt import FastVGGT
from gnomon.vlm.crossview.gotohunt import GoodTokenHunting
from gnomon.vlm.crossview.unit import UniT
from gnomon.vlm.geometry.base import GeometryEncoder, GeometryInput
from gnomon.vlm.geometry.tinygeo import TinyGeo
from gnomon.vlm.geometry.vggt import VGGT
from gnomon.vlm.multiview.cross import CrossView, ViewLayout
from gnomon.vlm.part import build


@dataclass(frozen=True)
class Case:
    """neutral: options with which nothing is left out. at_work: options with which something is."""

    kind: type[CrossView]
    neutral: dict[str, Any]
    at_work: dict[str, Any] = field(default_factory=dict)
    streams: bool = False


CASES = {
    "fastvggt": Case(FastVGGT, {"ratio": 0}, {"ratio": 0.6}),
    "fastvggt-late": Case(FastVGGT, {"first": 3}, {"ratio": 0.9, "first": 1, "protect": 0}),
    "gotohunt": Case(GoodTokenHunting, {"views": 5, "stride": 1, "local": 0}, {"views": 2, "local": 1, "sample": 2}),
    "gotohunt-own": Case(
        GoodTokenHunting, {"views": 9, "stride": 1, "local": 0, "own": True}, {"views": 2, "local": 0, "own": True}
    ),
    "gotohunt-stride": Case(GoodTokenHunting, {"local": 0, "sample": 0}, {"local": 0, "stride": 2}),
    "unit": Case(UniT, {"group": None, "queue": 0}, {"group": 2, "queue": 1}, streams=True),
    "unit-online": Case(UniT, {"group": 5}, {"group": 1, "queue": None}, streams=True),
}
every = pytest.mark.parametrize("name", CASES)
encoders = pytest.mark.parametrize("encoder", ["tinygeo", "vggt"])


def make(encoder: str, cross: CrossView | dict | None, **options) -> GeometryEncoder:
    """With weights far enough from where they begin that what is seen of other views tells in the output."""
    torch.manual_seed(0)
    if encoder == "tinygeo":
        made = TinyGeo(heads=[], cross=cross, **options)
    else:
        small = {"width": 32, "embed_depth": 1, "depth": 3, "attention_heads": 2, "trained_at": 56, "taps": ()}
        made = VGGT(heads=[], cross=cross, **small, **options)
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if "token" in name or "gamma" in name:
                parameter.add_(torch.randn_like(parameter) * 0.5)
    return made


def at_work(name: str) -> CrossView:
    return CASES[name].kind(**CASES[name].at_work)


def scenes(made: GeometryEncoder, *, views: int = 5, cells: tuple[int, int] = (4, 5)) -> GeometryInput:
    """Two scenes of pictures that are not square."""
    size = [side * made.multiple for side in cells]
    images = torch.rand(2, views, 3, *size, generator=torch.Generator().manual_seed(1))
    return GeometryInput(images, torch.ones(2, views, dtype=torch.bool))


def of(given: GeometryInput, views: list[int] | slice, scene: slice = slice(None)) -> GeometryInput:
    return replace(given, images=given.images[scene, views], valid=given.valid[scene, views])


def close(got: torch.Tensor, want: torch.Tensor, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(got, want, atol=tolerance, rtol=tolerance)


def test_every_method_is_tested():
    assert {file.stem for file in files("crossview")} == {name.split("-")[0] for name in CASES}


@encoders
@every
def test_neutral_is_dense(name: str, encoder: str):
    case = CASES[name]
    dense = make(encoder, None)
    given = scenes(dense)
    given.valid[1, 3] = False
    close(make(encoder, case.kind(**case.neutral)).measure(given).tokens, dense.measure(given).tokens, 1e-6)


@encoders
@every
def test_at_work_it_is_not(name: str, encoder: str):
    dense, made = make(encoder, None), make(encoder, at_work(name))
    given = scenes(dense)
    difference = (made.measure(given).tokens - dense.measure(given).tokens).abs().max()
    assert 1e-3 < difference < torch.inf


@every
def test_tokens_keep_their_order(name: str):
    """Where all views are the same, what a token gets does not depend on the view, but does on the token."""
    views, layout = 4, ViewLayout((4, 6), 2, torch.ones(1, 4, dtype=torch.bool))
    x, q, k, v = torch.randn(4, 1, 2, layout.length, 8, generator=torch.Generator().manual_seed(2))
    once, parts = x.flatten(1, 2).view(1, -1, 16)[:, : layout.length], (q, k, v)
    cross = at_work(name)
    memory = cross.begin(torch.randn(1, 1, 24, 16).repeat(1, views, 1, 1), layout)
    several = (part.repeat(1, 1, views, 1) for part in parts)
    o = cross.attend(once.repeat(1, views, 1), *several, layer=1, layout=layout, memory=memory)
    o = o.unflatten(2, (views, layout.length))
    close(o, o[:, :, :1].expand_as(o))
    assert (o[:, :, 0, 1:] - o[:, :, 0, :-1]).abs().amax((0, 1, 3)).min() > 1e-3


@encoders
@every
def test_missing_views_do_not_touch_the_others(name: str, encoder: str):
    made = make(encoder, at_work(name))
    given = scenes(made)
    padded = replace(given, images=given.images.clone(), valid=given.valid.clone())
    padded.images[:, 1], padded.valid[:, 1] = torch.nan, False
    out = made.measure(padded)
    assert not out.tokens[:, 1].any()
    close(out.tokens[:, [0, 2, 3, 4]], made.measure(of(given, [0, 2, 3, 4])).tokens)


@encoders
@every
def test_each_scene_is_alone(name: str, encoder: str):
    made = make(encoder, at_work(name))
    given = scenes(made)
    given.valid[1, 3:] = False
    together = made.measure(given).tokens
    close(together[:1], made.measure(of(given, slice(None), slice(1))).tokens)
    close(together[1:, :3], made.measure(of(given, slice(3), slice(1, 2))).tokens)


@every
def test_a_scene_without_any_view_is_finite(name: str):
    made = make("tinygeo", at_work(name))
    given = scenes(made)
    whole = made.measure(given).tokens
    given.valid[0] = False
    out = made.measure(given).tokens
    assert not out[0].any()
    close(out[1], whole[1])


@encoders
@every
def test_an_encoder_records_it(name: str, encoder: str):
    made = make(encoder, at_work(name))
    spec = json.loads(json.dumps(made.spec()))
    again = build(spec, GeometryEncoder)
    assert isinstance(again.cross, CASES[name].kind)
    assert json.loads(json.dumps(again.spec())) == spec
    again.load_state_dict(made.state_dict())
    given = scenes(made)
    assert torch.equal(again.measure(given).tokens, made.measure(given).tokens)


@every
def test_it_trains(name: str):
    made = make("tinygeo", at_work(name), frozen=False)
    given = scenes(made)
    given.valid[0, 2] = False
    out = made.measure(given).tokens
    (out * torch.randn_like(out)).sum().backward()
    gradients = [block.attn.qkv.weight.grad for block in made.aggregator.global_blocks]
    assert all(gradient.isfinite().all() and gradient.abs().sum() > 0 for gradient in gradients)


@every
def test_half_precision(name: str):
    made = make("tinygeo", at_work(name)).to(torch.bfloat16)
    given = scenes(made)
    out = made.measure(replace(given, images=given.images.bfloat16())).tokens
    assert out.dtype == torch.bfloat16 and out.isfinite().all()


@every
def test_state(name: str):
    """Those that stream go on from a state and leave it as it was; the others say that they do not."""
    made = make("tinygeo", at_work(name))
    given = scenes(made)
    state = made.measure(of(given, slice(0, 2))).state
    if not CASES[name].streams:
        with pytest.raises(ValueError, match="cannot go on from earlier views; give it all views at once"):
            made.measure(replace(given, state={}))
        return
    before = copy.deepcopy(state)
    whole, rest = made.measure(given).tokens, replace(of(given, slice(2, 5)), state=state)
    close(made.measure(rest).tokens, whole[:, 2:])
    close(made.measure(replace(rest, state=before)).tokens, whole[:, 2:])
    assert torch.equal(made.measure(rest).tokens, made.measure(rest).tokens)
