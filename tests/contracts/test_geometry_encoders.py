"""What every geometry encoder promises: tokens of each view's cells that other views inform and missing ones do not."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import pytest
import torch
from torch import nn

from gnomon.cli.methods import files
from gnomon.vlm.geometry.base import GeometryEncoder, GeometryInput, GeometryOutput
from gnomon.vlm.geometry.depth_anything_3 import DepthAnything3
from gnomon.vlm.geometry.depth_only import DepthOnly
from gnomon.vlm.geometry.horizonstream import HorizonStream
from gnomon.vlm.geometry.known import Known
from gnomon.vlm.geometry.pi3 import Pi3
from gnomon.vlm.geometry.plane_sweep import PlaneSweep
from gnomon.vlm.geometry.tinygeo import TinyGeo
from gnomon.vlm.geometry.vggt import VGGT
from gnomon.vlm.layout import Views
from gnomon.vlm.part import build

VIT = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2, "image_size": 56, "patch_size": 14}
DEPTH = {
    "model_type": "depth_anything",
    "backbone_config": {
        "model_type": "dinov2",
        **VIT,
        "out_indices": [1, 2, 3, 4],
        "reshape_hidden_states": False,
    },
    "patch_size": 14,
    "reassemble_hidden_size": 32,
    "neck_hidden_sizes": [8, 8, 16, 16],
    "fusion_hidden_size": 8,
    "head_hidden_size": 8,
}
SMALL = {"features": 8, "channels": (4, 8, 8, 8), "trained_at": 56}
DA3 = {"width": 32, "attention_heads": 2, "depth": 6, "taps": (1, 3, 4, 5), "camera_heads": 2, **SMALL}


@dataclass(frozen=True)
class Case:
    """across: views inform each other. reference: one view is told apart from the others. streams: views come one
    after the other, and those to come inform none.
    """

    make: Callable[..., GeometryEncoder]
    across: bool = True
    reference: bool = True
    trained: bool = True
    streams: bool = False


def vggt(**options) -> VGGT:
    return VGGT(width=32, embed_depth=2, depth=3, attention_heads=2, taps=(0, 1, 2, 2), **SMALL, **options)


def da3(size: str = "small", **options) -> DepthAnything3:
    more = {} if size == "metric_large" else {"alternate_from": 2}
    return DepthAnything3(size, args={**DA3, **more}, **options)


def pi3(**options) -> Pi3:
    sizes = {"width": 32, "decoder_width": 16, "camera_width": 12, "trained_at": 56}
    return Pi3(embed_depth=2, depth=4, attention_heads=2, **sizes, **options)


def horizonstream(**options) -> HorizonStream:
    sizes = {"width": 32, "embed_depth": 2, "depth": 3, "attention_heads": 2, "taps": (0, 1, 2, 2), "pose_tokens": 2}
    return HorizonStream(window=3, period=2, memory_layers=(0, 2), **sizes, **SMALL, **options)


CASES = {
    "tinygeo": Case(TinyGeo),
    "vggt": Case(vggt),
    "depth_anything_3": Case(da3),
    "depth_anything_3-rays": Case(lambda **options: da3(cameras="rays", **options)),
    "depth_anything_3-saddle": Case(lambda **options: da3(reference="saddle_balanced", **options), reference=False),
    "depth_anything_3-condition": Case(lambda **options: da3(condition=True, **options), reference=True),
    "depth_anything_3-metric": Case(lambda **options: da3("metric_large", **options), across=False, reference=False),
    "depth_only": Case(lambda **options: DepthOnly(config=DEPTH, **options), across=False, reference=False),
    "pi3": Case(pi3, reference=False),
    "horizonstream": Case(horizonstream, streams=True),
    "plane_sweep": Case(PlaneSweep),
    "known": Case(lambda **_: Known(patch=14), across=False, reference=True, trained=False),
}
every = pytest.mark.parametrize("name", CASES)
trained = pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.trained])


def encoder(name: str, **options) -> GeometryEncoder:
    """With weights far enough from where they begin that every part of it tells in the output."""
    torch.manual_seed(0)
    made = CASES[name].make(**options)
    with torch.no_grad():
        for parameter_name, parameter in made.named_parameters():
            if "token" in parameter_name or "gamma" in parameter_name:
                parameter.add_(torch.randn_like(parameter) * 0.5)
    return made


def scenes(made: GeometryEncoder, *, views: int = 4, cells: tuple[int, int] = (2, 3), seed: int = 1) -> GeometryInput:
    """Two scenes of pictures that are not square, seen by cameras that look about forward."""
    generator = torch.Generator().manual_seed(seed)
    height, width = (side * made.multiple for side in cells)
    turn = torch.randn(2, views, 3, 3, generator=generator) * 0.1 + torch.eye(3)
    rotation = torch.linalg.qr(turn)[0]
    rotation = rotation * torch.linalg.det(rotation)[..., None, None]
    shift = torch.randn(2, views, 3, 1, generator=generator)
    lens = torch.tensor([[width, 0, width / 2], [0, width, height / 2], [0, 0, 1.0]])
    return GeometryInput(
        images=torch.rand(2, views, 3, height, width, generator=generator),
        valid=torch.ones(2, views, dtype=torch.bool),
        intrinsics=lens.expand(2, views, 3, 3),
        extrinsics=torch.cat([rotation, shift], dim=-1),
        depth=1 + torch.rand(2, views, height, width, generator=generator),
    )


def chosen(given: GeometryInput, views: list[int]) -> GeometryInput:
    names = ("images", "valid", "intrinsics", "extrinsics", "depth")
    return replace(given, **{name: getattr(given, name)[:, views] for name in names})


def of_views(out: GeometryOutput) -> dict[str, torch.Tensor]:
    """Everything in it that has an entry per view."""
    names = ("tokens", "special", "depth", "depth_confidence", "points", "points_confidence", "rays", "rays_confidence")
    found = {name: getattr(out, name) for name in (*names, "pose", "extrinsics", "intrinsics")}
    layers = {f"layer {layer}": tokens for layer, tokens in out.layers.items()}
    return {name: value for name, value in {**found, **layers}.items() if value is not None}


def assert_close(got: GeometryOutput, want: GeometryOutput, views: list[int] | None = None, *, of: list[int]) -> None:
    """Views `of` of `got` equal `views` of `want`."""
    left, right = of_views(got), of_views(want)
    assert left.keys() == right.keys() >= {"tokens"}
    for name in left:
        expected = right[name] if views is None else right[name][:, views]
        torch.testing.assert_close(left[name][:, of], expected, atol=1e-4, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}")


def test_what_is_padded_holds_nothing_and_a_camera_that_can_be_inverted():
    given = scenes(Known(patch=14), views=3)
    two = [
        Views(
            (given.images[k, :count] * 255).byte(), [-1] * count, given.intrinsics[k, :count],
            given.extrinsics[k, :count], given.depth[k, :count],
        )
        for k, count in ((0, 3), (1, 1))
    ]  # fmt: skip
    out = GeometryInput.stack(two, "cpu")
    assert out.valid.tolist() == [[True] * 3, [True, False, False]]
    assert not out.depth[1, 1:].any() and not out.images[1, 1:].any()
    assert torch.equal(out.intrinsics[1, 2], torch.eye(3)) and torch.equal(out.extrinsics[1, 2], torch.eye(3, 4))
    assert torch.equal(out.depth[0], given.depth[0]) and torch.equal(out.extrinsics[1, 0], given.extrinsics[1, 0])


def test_every_encoder_is_tested():
    assert {file.stem for file in files("geometry")} == {name.split("-")[0] for name in CASES}


@every
@pytest.mark.parametrize("views", [1, 3])
def test_shapes(name: str, views: int):
    made = encoder(name)
    given = scenes(made, views=views)
    layers = [-1, 0] if made.layer_count else []
    out = made.measure(given, layers=layers, heads=made.heads)
    (h, w), (height, width) = out.grid, given.images.shape[-2:]
    assert (h, w) == (2, 3) and (height, width) == (h * made.patch, w * made.patch)
    assert out.tokens.shape == (2, views, h * w, made.width)
    assert list(out.layers) == layers
    if layers:
        assert torch.equal(out.layers[-1], out.tokens) and not torch.equal(out.layers[0], out.tokens)
    shapes = {
        "depth": (2, views, height, width),
        "points": (2, views, height, width, 3),
        "extrinsics": (2, views, 3, 4),
        "intrinsics": (2, views, 3, 3),
        "rays": (2, views, 8 * h, 8 * w, 6),
    }
    predicted = {"extrinsics", "intrinsics"} if "camera" in made.heads else set()
    for field in (made.heads - {"camera"}) | predicted:
        assert getattr(out, field).shape == shapes[field], field
    for field, value in of_views(out).items():
        assert value.isfinite().all(), field
    if "depth" in made.heads:
        assert (out.depth > 0).all()


@every
def test_tokens_have_the_dtype_of_the_pictures(name: str):
    made = encoder(name)
    given = scenes(made, views=2)
    out = made.measure(given, heads=made.heads)
    assert out.tokens.dtype == torch.float32
    made.to(torch.bfloat16)
    for dtype in (torch.bfloat16, torch.float32):
        half = made.measure(replace(given, images=given.images.to(dtype)), heads=made.heads)
        assert half.tokens.dtype == dtype
        assert {value.dtype for field, value in of_views(half).items() if field not in ("tokens", "special")} == {
            torch.float32
        }


@pytest.mark.parametrize("name", ["plane_sweep", "depth_only", "known"])
def test_points_by_cameras_that_are_given_keep_their_digits_under_autocast(name: str):
    made = encoder(name)
    given = scenes(made, views=3)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = made.measure(given, heads=["depth", "points"])
    first = given.extrinsics[:, :1].double()
    for view in range(3):
        camera = given.extrinsics[:, view].double()
        row, column = torch.meshgrid(*(torch.arange(n) + 0.5 for n in given.images.shape[3:]), indexing="ij")
        pixels = torch.stack([column, row, torch.ones_like(row)], -1).double()
        own = mixed.depth[:, view, ..., None].double() * (pixels @ torch.linalg.inv(given.intrinsics[0, 0].double()).mT)
        world = (own - camera[:, None, None, :, 3]) @ camera[:, None, :, :3]
        found = world @ first[:, 0, None, :, :3].mT + first[:, 0, None, None, :, 3]
        expected = own if mixed.frame == "own_camera" else found
        torch.testing.assert_close(mixed.points[:, view].double(), expected, atol=1e-4, rtol=1e-4)


@trained
def test_frozen(name: str):
    """No graph, evaluation mode under a parent that trains, and no optimiser moves it."""
    made = encoder(name)
    parent = nn.ModuleList([made, nn.Linear(made.width, 1)]).train()
    assert not any(module.training for module in made.modules())
    before = {key: value.clone() for key, value in made.state_dict().items()}
    out = made.measure(scenes(made, views=2), heads=made.heads)
    assert not any(value.requires_grad for value in of_views(out).values())
    optimizer = torch.optim.AdamW(parent.parameters(), lr=0.1, weight_decay=0.1)
    parent[1](out.tokens).sum().backward()
    optimizer.step()
    assert all(torch.equal(value, before[key]) for key, value in made.state_dict().items())


@trained
def test_trains_when_asked(name: str):
    made = encoder(name, frozen=False)
    made.train()
    given = scenes(made, views=3)
    out = made.measure(given, heads=made.heads)
    assert made.training
    sum((value * torch.randn_like(value)).sum() for value in of_views(out).values() if value.requires_grad).backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in made.parameters())
    assert all(p.grad is None or p.grad.isfinite().all() for p in made.parameters())


@every
def test_missing_views_do_not_touch_the_others(name: str):
    made = encoder(name)
    given = scenes(made)
    valid = given.valid.clone()
    valid[:, 2] = False
    junk = {"images": torch.nan, "depth": torch.nan, "intrinsics": 0, "extrinsics": 0}
    padded = {field: getattr(given, field).clone() for field in junk}
    for field, value in junk.items():
        padded[field][:, 2] = value
    out = made.measure(replace(given, **padded, valid=valid), heads=made.heads)
    assert not out.tokens[:, 2].any()
    assert_close(out, made.measure(chosen(given, [0, 1, 3]), heads=made.heads), of=[0, 1, 3])


@every
def test_a_scene_without_any_view_is_finite(name: str):
    made = encoder(name)
    given = scenes(made, views=2)
    valid = torch.tensor([[False, False], [True, True]])
    out = made.measure(replace(given, valid=valid), heads=made.heads)
    assert not out.tokens[0].any()
    torch.testing.assert_close(out.tokens[1], made.measure(given, heads=made.heads).tokens[1], atol=1e-5, rtol=1e-5)


@every
def test_the_first_view_that_is_there_is_the_reference(name: str):
    made = encoder(name)
    given = scenes(made)
    valid = given.valid.clone()
    valid[:, 0] = False
    out = made.measure(replace(given, valid=valid), heads=made.heads)
    assert_close(out, made.measure(chosen(given, [1, 2, 3]), heads=made.heads), of=[1, 2, 3])


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if not case.streams])
def test_views_have_no_order(name: str):
    """But for the reference: the other views may come in any order, and where there is none, all of them."""
    made, case = encoder(name), CASES[name]
    given = scenes(made)
    order = [0, 3, 1, 2] if case.reference else [2, 0, 3, 1]
    out, again = (made.measure(chosen(given, views), heads=made.heads) for views in ([0, 1, 2, 3], order))
    assert_close(again, out, order, of=[0, 1, 2, 3])


@every
def test_views_inform_each_other(name: str):
    made = encoder(name)
    given = scenes(made)

    def tells(view: int, others: list[int]) -> bool:
        images = given.images.clone()
        images[:, view] = 1 - images[:, view]
        before, after = (made.measure(replace(given, images=x)).tokens[:, others] for x in (given.images, images))
        return not torch.allclose(before, after, atol=1e-5)

    case = CASES[name]
    assert tells(0, [1, 2, 3]) == case.across
    assert tells(3, [0, 1, 2]) == (case.across and not case.streams)


@every
def test_heads_leave_the_tokens_alone(name: str):
    made = encoder(name)
    given = scenes(made)
    with_heads, without = made.measure(given, heads=made.heads), made.measure(given)
    assert torch.equal(with_heads.tokens, without.tokens)
    assert without.depth is without.points is without.pose is None


@trained
def test_spec_makes_the_same_encoder(name: str):
    made = encoder(name)
    spec = json.loads(json.dumps(made.spec()))
    again = build(spec, GeometryEncoder)
    assert json.loads(json.dumps(again.spec())) == spec
    again.load_state_dict(made.state_dict())
    given = scenes(made, views=2)
    assert_close(again.measure(given, heads=made.heads), made.measure(given, heads=made.heads), of=[0, 1])


@every
def test_it_says_what_it_needs(name: str):
    """Without one of these it is refused before it looks, and without all the rest it sees."""
    made = encoder(name)
    given = scenes(made, views=2)
    assert made.needs <= made.reads <= {"intrinsics", "extrinsics", "depth"}
    for what in made.needs:
        with pytest.raises(ValueError, match=rf"needs .*{what}.* of every view; give them"):
            made.check(replace(given, **{what: None}))
    rest = {"intrinsics", "extrinsics", "depth"} - made.needs
    assert made.measure(replace(given, **dict.fromkeys(rest))).tokens.isfinite().all()


@every
def test_what_it_cannot_see_is_refused(name: str):
    made = encoder(name)
    given = scenes(made, views=2)
    with pytest.raises(ValueError, match=r"multiples of .* resize them to") as found:
        made.measure(replace(given, images=given.images[..., :-1]))
    assert "\n" not in str(found.value)
    with pytest.raises(ValueError, match=r"not colours; choose"):
        made.measure(given, heads=["colours"])
    if made.layer_count is not None:
        with pytest.raises(ValueError, match=r"no layer 99 .* choose"):
            made.measure(given, layers=[99])
    made.max_views = 1
    with pytest.raises(ValueError, match="up to 1 views, a scene has 2; leave some out"):
        made.measure(given)


@pytest.mark.parametrize("taps", [(0, 1, 2), (0, 1, 2, 9), (-4, -3, -2, -1), ()])
@pytest.mark.parametrize("make", [VGGT, HorizonStream, DepthAnything3, partial(DepthAnything3, "metric_large")])
def test_layers_that_dense_heads_cannot_read_are_refused(make: Callable[..., GeometryEncoder], taps: tuple[int, ...]):
    """At construction; without such a head nobody reads them."""
    sizes = {"width": 32, "attention_heads": 2, "depth": 6, **SMALL, "taps": taps}
    three = make is not VGGT and make is not HorizonStream
    options = {"args": sizes} if three else {"embed_depth": 1, **sizes}
    if make is HorizonStream:
        options |= {"memory_layers": (1,), "pose_tokens": 2}
    with pytest.raises(ValueError, match=r"has taps \[.*\] of 6 layers; give four layers of 0 to 5") as found:
        make(heads=["depth"], **options)
    assert "\n" not in str(found.value)
    made = make(heads=[], **options)
    assert made.measure(scenes(made, views=1)).tokens.isfinite().all()


@pytest.mark.parametrize("depth", [0, 1, 5])
def test_blocks_that_make_no_pairs_are_refused(depth: int):
    with pytest.raises(ValueError, match=rf"Pi3 has depth {depth}; .* give an even number"):
        Pi3(width=32, embed_depth=1, depth=depth, attention_heads=2, decoder_width=16, camera_width=12)
