"""What every fusion promises; the members are whatever stands in vlm/fusion.

In a tiny model, on pictures that are not square, with cells a quarter of a visual token: 3 x 5 tokens, 6 x 10 cells.
"""

from __future__ import annotations

import importlib
import inspect
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from gnomon.vlm.encoders.timm import Timm
from gnomon.vlm.freeze import freeze
from gnomon.vlm.fusion import base
from gnomon.vlm.fusion.add import Add
from gnomon.vlm.fusion.base import Aligned, Fusion
from gnomon.vlm.fusion.concat import Concat
from gnomon.vlm.fusion.concat_attention import ConcatAttention
from gnomon.vlm.fusion.residual_gate import ResidualGate
from gnomon.vlm.fusion.sve_math import SVEMath
from gnomon.vlm.geometry.base import GeometryEncoder, GeometryInput, GeometryOutput
from gnomon.vlm.geometry.known import Known
from gnomon.vlm.geometry.tinygeo import TinyGeo
from gnomon.vlm.layout import IGNORE, Batch, Kind, TokenLayout, Views
from gnomon.vlm.model import VLM
from gnomon.vlm.plan import ReductionPlan
from gnomon.vlm.reduction.random import Random
from gnomon.vlm.reduction.visionzip import VisionZip
from gnomon.vlm.save import load, save
from gnomon.vlm.tally import Tally

SIZE = 24, 40
GATED = {"class_path": "gnomon.vlm.fusion.gated.Gated", "init_args": {"merge": 2}}
SMALL = {
    "merge": 2,
    "heads": 4,
    "queries": 3,
    "tokens": 3,
    "width": 16,
    "octaves": 2,
    "layers": [0, 1],
    "fusion": GATED,
}


def members() -> list[type[Fusion]]:
    found = []
    for path in sorted(Path(base.__file__).parent.glob("*.py")):
        module = importlib.import_module(f"gnomon.vlm.fusion.{path.stem}")
        own = [v for v in vars(module).values() if isinstance(v, type) and v.__module__ == module.__name__]
        found += [cls for cls in own if issubclass(cls, Fusion) and cls not in (Fusion, Aligned)]
    return found


def takes(cls: type[Fusion]) -> set[str]:
    return set(inspect.signature(cls.__init__).parameters)


every = pytest.mark.parametrize("cls", members(), ids=lambda cls: cls.__name__)
CASES = [(cls, {}) for cls in members()]
CASES += [(cls, {"behind": not cls().behind}) for cls in members() if "behind" in takes(cls)]
CASES += [(cls, {"align": how}) for cls in (Concat, ConcatAttention) for how in ("interp", "pool", "nearest")]
placed = pytest.mark.parametrize(
    ("cls", "options"), CASES, ids=["-".join(map(str, [c.__name__, *o.values()])) for c, o in CASES]
)
"""On both sides of the connector, and in other alignments, where a member knows them."""


def made(cls: type[Fusion], **options) -> Fusion:
    asked = {**SMALL, **options}
    return cls(**{name: value for name, value in asked.items() if name in takes(cls)})


@pytest.fixture
def build(tiny: Callable[..., VLM]) -> Callable[..., VLM]:
    def make(fusion: Fusion | None = None, *, patch: int = 4, **options) -> VLM:
        vit = {"img_size": list(SIZE), "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2}
        geometry = None if fusion is None else Known(patch=patch, octaves=2)
        torch.manual_seed(0)
        given = {"image_size": SIZE, "geometry": geometry, "fusion": fusion, **options}
        return tiny(encoder=Timm("vit_tiny_patch16_224", args=vit), **given)

    return make


def opened(model: VLM) -> VLM:
    """As training leaves it: nothing is exactly nought."""
    draw = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.fusion.parameters():
            if not parameter.any():
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=draw))
    return model


def image(seed: int) -> Tensor:
    return torch.randint(0, 256, (3, *SIZE), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def scene(seed: int, shown: int, *, views: int = 2) -> Views:
    """A scene of some views, the first of them images; nothing is known of one corner of the first."""
    draw = torch.Generator().manual_seed(100 + seed)
    depth = 2 + 4 * torch.rand(views, *SIZE, generator=draw)
    depth[0, :8, :8] = 0
    lens = torch.tensor([[30.0, 0, 20], [0, 30, 12], [0, 0, 1]]).expand(views, 3, 3)
    pose = torch.eye(3, 4).repeat(views, 1, 1)
    pose[:, :, 3] = 0.3 * torch.randn(views, 3, generator=draw)
    pixels = torch.randint(0, 256, (views, 3, *SIZE), dtype=torch.uint8, generator=draw)
    return Views(pixels, [*range(shown), *[-1] * (views - shown)], lens.clone(), pose, depth)


# Per row: text, images, and of how many of these there is a scene (of how many views)
ROWS = [
    ([3, 4, 11, 12], [1], 1, 2),
    ([7, 8, 9], [2], 0, 0),
    ([5, 6, 7, 13, 14], [3, 4, 5], 2, 3),
    ([3, 4, 5, 6], [], 0, 0),
]


def batch_of(model: VLM, rows: list[tuple] = ROWS, *, depth: Callable[[Tensor], Tensor] = lambda d: d) -> Batch:
    """Right-padded rows: images, slots of the scene's tokens, and text whose second half is the answer."""
    h, w = model.image.grid(*SIZE)
    extra = 0 if model.views is None else model.views.extra
    lines, pixels, views = [], [], []
    for text, images, shown, count in rows:
        line = []
        for k, seed in enumerate(images):
            line += [(0, IGNORE, Kind.IMAGE, k, r, c) for r in range(h) for c in range(w)]
            pixels.append(image(seed))
        if shown and model.fusion is not None:
            known = scene(images[0], shown, views=count)
            first = len(pixels) - len(images)
            known.image = [first + i if i >= 0 else -1 for i in known.image]
            known.depth = depth(known.depth)
            views.append(known)
            line += [(0, IGNORE, Kind.GEOMETRY, -1, -1, -1)] * extra
        half = len(text) // 2
        line += [(t, IGNORE if i < half else t, Kind.TEXT, -1, -1, -1) for i, t in enumerate(text)]
        lines.append(line)
    length = max(map(len, lines))
    full = torch.tensor([line + [(0, IGNORE, Kind.PAD, -1, -1, -1)] * (length - len(line)) for line in lines])
    layout = TokenLayout(full[..., 2], full[..., 3], full[..., 4:], torch.arange(length).expand(len(lines), length))
    return Batch(full[..., 0], full[..., 1], layout, pixels, [f"s{i}" for i in range(len(rows))], views=views)


def plain_of(batch: Batch) -> Batch:
    """The same sequences for a model without geometry; what stood for scenes is text to it."""
    kind = batch.layout.kind
    layout = replace(batch.layout, kind=torch.where(kind == Kind.GEOMETRY, Kind.TEXT, kind))
    return replace(batch, layout=layout, views=[])


def images_of(model: VLM, batch: Batch) -> Tensor:
    """(tokens,C) what stands in the images' slots."""
    return model.embed(batch)[0][batch.layout.is_image]


def with_geometry(batch: Batch) -> Tensor:
    """(tokens,) bool: which image tokens are of views of a scene."""
    here = {i for known in batch.views for i in known.image}
    cells = batch.layout.is_image.sum() // len(batch.pixels)
    return torch.tensor([i in here for i in range(len(batch.pixels))]).repeat_interleave(cells)


def test_members_are_found():
    names = {cls.__name__ for cls in members()}
    assert {"Add", "GeoSR", "Cross", "ResidualGate", "GSTVLA", "SVEMath", "SpatialMLLM"} <= names and len(CASES) > 20


@placed
@torch.no_grad()
def test_images_without_geometry_keep_their_tokens_bit_for_bit(cls, options, build):
    plain, model = build(), opened(build(made(cls, **options)))
    batch = batch_of(model)
    before, after, told = images_of(plain, plain_of(batch)), images_of(model, batch), with_geometry(batch)
    assert torch.equal(before[~told], after[~told])
    if cls.__name__ != "GSTVLA":
        # of one corner nothing is known
        assert int((before[told] != after[told]).any(1).sum()) >= int(told.sum()) - 2


@every
@torch.no_grad()
def test_a_batch_without_geometry_is_the_plain_models(cls, build):
    plain, model = build(), opened(build(made(cls)))
    rows = [(text, images, 0, 0) for text, images, _, _ in ROWS]
    assert torch.equal(model(batch_of(model, rows)).logits, plain(batch_of(plain, rows)).logits)


@placed
@torch.no_grad()
def test_rows_of_a_mixed_batch_equal_the_rows_alone(cls, options, build):
    model = opened(build(made(cls, **options)))
    together = model(batch_of(model)).logits
    for row, found in zip(ROWS, together):
        alone = model(batch_of(model, [row])).logits[0]
        torch.testing.assert_close(found[: len(alone)], alone, atol=3e-5, rtol=1e-4)


def spoilt(bad: float) -> Callable[[Tensor], Tensor]:
    """Scenes of two views have this depth all over, others here and there."""
    return lambda depth: torch.where((depth > 4) | torch.tensor(len(depth) == 2), bad, depth)


@every
@torch.no_grad()
def test_a_closed_gate_is_the_plain_model_bit_for_bit(cls, build):
    """Whatever geometry holds: nothing of it, or what is no number."""
    plain = build()
    closed = [ResidualGate(made(cls))]
    closed += [made(cls, zero=True)] if "zero" in takes(cls) else []
    for fusion in closed:
        model = build(fusion)
        batch = batch_of(model)
        expected = images_of(plain, plain_of(batch))
        for bad in (0.0, math.inf, math.nan):
            assert torch.equal(images_of(model, batch_of(model, depth=spoilt(bad))), expected)
        if not fusion.extra:
            assert torch.equal(model(batch).logits, plain(plain_of(batch)).logits)


@every
@torch.no_grad()
def test_geometry_that_is_no_number_stays_out_of_open_gates_too(cls, build):
    model = opened(build(made(cls)))
    for bad in (math.inf, math.nan):
        assert bool(model(batch_of(model, depth=spoilt(bad))).logits.isfinite().all())


@every
@torch.no_grad()
def test_evaluation_draws_nothing_and_repeats_itself(cls, build):
    model = opened(build(made(cls)))
    batch, before = batch_of(model), torch.get_rng_state()
    first = model(batch).logits
    assert torch.equal(first, model(batch).logits) and torch.equal(before, torch.get_rng_state())


@every
def test_training_draws_from_the_global_generator_alone(cls, build):
    model = opened(build(made(cls))).train()
    batch, losses = batch_of(model), []
    for _ in range(2):
        torch.manual_seed(3)
        losses.append(model.loss(batch)[0].detach())
    assert torch.equal(*losses)


@every
def test_recomputing_layers_gives_the_same_gradients(cls, build):
    gradients = []
    for checkpointing in (False, True):
        model = opened(build(made(cls))).train()
        model.lm.checkpointing = checkpointing
        torch.manual_seed(3)
        model.loss(batch_of(model))[0].backward()
        gradients.append([p.grad for p in model.fusion.parameters()])
    for plain, recomputed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, recomputed, atol=1e-5, rtol=1e-4)


@placed
@pytest.mark.parametrize("reducer", [Random(0.5), VisionZip(0.5)], ids=lambda r: type(r).__name__)
@torch.no_grad()
def test_with_reducers_before_and_behind(cls, options, reducer, build):
    """Random acts behind the connector, VisionZip (one source of whose tokens is no cell) behind the encoder."""
    model = opened(build(made(cls, **options), reducers=[reducer]))
    batch = batch_of(model)
    whole = model.read(batch)
    assert int((whole.after.kind == Kind.IMAGE).sum()) < int(batch.layout.is_image.sum())
    for i, row in enumerate(ROWS):
        single = replace(batch_of(model, [row]), samples=[f"s{i}"])
        read = model.read(single)
        texts = [r.hidden[k][r.after.kind[k] == Kind.TEXT] for r, k in ((whole, i), (read, 0))]
        torch.testing.assert_close(*texts, atol=5e-5, rtol=1e-3)


@placed
@torch.no_grad()
def test_what_survives_a_reducer_has_the_geometry_of_its_own_cell(cls, options, build):
    """Dropping tokens behind the fusion, or before it, comes to the same for fusions that take tokens one by one."""
    mixes = {"ConcatAttention", "GeoSRCross", "SVEMath"}
    model = opened(build(made(cls, **options)))
    batch = batch_of(model, [ROWS[0]])
    seen = model.see(batch.pixels, views=batch.views)[0]
    model.scenery.tokens(model.lm.embed(batch.ids), batch, seen.survey, [(seen.members, seen.features)])
    features = seen.features
    if model.fusion.behind:
        features = model.connector({"vision": features})
    fused = model.scenery.fuse(features, seen.members, seen.survey, touch=False).tokens
    keep = ReductionPlan.keep(torch.tensor([[1, 4, 5, 13]]))
    fewer = model.scenery.fuse(features.reduced(keep), seen.members, seen.survey, touch=False).tokens
    assert fewer.shape[1] == 4
    if cls.__name__ not in mixes:
        torch.testing.assert_close(fewer, fused[:, [1, 4, 5, 13]], atol=1e-5, rtol=1e-4)


@every
def test_gradients_reach_every_parameter(cls, build):
    model = opened(build(made(cls))).train()
    loss, count = model.loss(batch_of(model))
    (loss / count).backward()
    lost = [name for name, p in model.fusion.named_parameters() if p.grad is None or not p.grad.any()]
    # what every key has in common changes no softmax
    assert [name for name in lost if not name.endswith(("key.bias", "key.0.bias"))] == []
    assert all(bool(p.grad.isfinite().all()) for p in model.fusion.parameters())


@every
@pytest.mark.parametrize("rows", [ROWS[1:2], ROWS[3:]], ids=["images", "text"])
def test_without_geometry_every_parameter_has_a_gradient_of_zero(cls, rows, build):
    model = opened(build(made(cls))).train()
    loss, _ = model.loss(batch_of(model, rows))
    loss.backward()
    assert bool(loss.isfinite())
    assert all(p.grad is not None and not p.grad.any() for p in model.fusion.parameters())


@every
def test_only_declared_parameters_move(cls, build):
    model = opened(build(made(cls))).train()
    if not list(model.fusion.parameters()):
        return
    freeze(model, ["fusion.*"])
    before = {name: p.detach().clone() for name, p in model.state_dict().items()}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(2):
        loss, count = model.loss(batch_of(model))
        optimizer.zero_grad()
        (loss / count).backward()
        optimizer.step()
    moved = {name for name, p in model.state_dict().items() if not torch.equal(p, before[name])}
    assert moved and all(name.startswith("fusion.") for name in moved)
    assert not model.geometry.training


@every
@torch.no_grad()
def test_options_and_weights_come_back_from_a_saved_model(cls, build, tmp_path):
    model = opened(build(made(cls)))
    save(model, tmp_path / "m")
    again = load(tmp_path / "m")
    assert again.fusion.spec() == model.fusion.spec()
    batch = batch_of(model)
    assert torch.equal(again(batch).logits, model(batch).logits)


@every
@torch.no_grad()
def test_in_half_precision(cls, build):
    model = opened(build(made(cls))).to(torch.bfloat16)
    logits = model(batch_of(model)).logits
    assert logits.dtype == torch.bfloat16 and bool(logits.isfinite().all())


@pytest.mark.parametrize("cls", [c for c in members() if made(c).align == "merge"], ids=lambda cls: cls.__name__)
@pytest.mark.parametrize("patch", [8, 2])
@torch.no_grad()
def test_grids_that_do_not_fit_are_refused_in_one_line(cls, patch, build):
    model = build(made(cls), patch=patch)
    with pytest.raises(ValueError, match=r"merge|merged") as error:
        model(batch_of(model))
    assert "\n" not in str(error.value)


@every
def test_openness_is_a_share(cls, build):
    model = opened(build(made(cls)))
    batch = batch_of(model)
    seen = model.see(batch.pixels, views=batch.views)[0]
    model.scenery.tokens(model.lm.embed(batch.ids), batch, seen.survey, [(seen.members, seen.features)])
    places, known = seen.survey.of(seen.members)[0]
    features = seen.features if not model.fusion.behind else model.connector({"vision": seen.features})
    found = model.fusion.openness(model.scenery.parts(features.at(places), known, seen.survey))
    if found is not None:
        assert found.shape == (len(places), 15) and bool(((found >= 0) & (found <= 1)).all())


@every
def test_what_is_tallied_is_what_the_tokens_say(cls, build):
    """In training, against the plain model's tokens; what changes before the connector does not show in these."""
    plain, model = build(), opened(build(made(cls))).train()
    batch = batch_of(model)
    model.scenery.tally = Tally()
    told = with_geometry(batch)
    after, before = images_of(model, batch)[told], images_of(plain, plain_of(batch))[told]
    found = Tally.shares(model.scenery.tally.take(torch.device("cpu")))
    if model.fusion.behind and cls.__name__ != "GSTVLA":
        expected = (after - before).norm(dim=-1).mean() / before.norm(dim=-1).mean()
        assert found["fusion_ratio"] == pytest.approx(expected.item(), rel=1e-4)
    assert ("fusion_ratio" in found) == (cls.__name__ != "GSTVLA")
    assert ("scene_ratio" in found) == bool(model.fusion.extra)
    assert 0 <= found.get("fusion_open", 0) <= 1 and ("fusion_open" in found) == (model.fusion.opened is not None)
    model.eval()(batch)
    assert Tally.shares(model.scenery.tally.take(torch.device("cpu"))) == {}


class InTheWorld(Known):
    """Known, whose points are in the world of the extrinsics."""

    def forward(self, scenes: GeometryInput, *, layers=(), heads=()) -> GeometryOutput:
        output = super().forward(scenes, layers=layers, heads=heads)
        if output.points is not None:
            # the cameras of these scenes are moved and not turned
            away = scenes.extrinsics[:, :1, None, None, :, 3]
            known = output.points_confidence[..., None] > 0
            output.points, output.frame = torch.where(known, output.points - away, 0), "world"
        return output


PLACED = [cls for cls in members() if "points" in made(cls).needs]


@pytest.mark.parametrize("cls", PLACED, ids=lambda cls: cls.__name__)
@torch.no_grad()
def test_points_of_another_frame_tell_the_same(cls, build):
    encoders: list[type[GeometryEncoder]] = [Known, InTheWorld]
    found = [opened(build(made(cls), geometry=encoder(patch=4, octaves=2))) for encoder in encoders]
    batch = batch_of(found[0])
    torch.testing.assert_close(*(images_of(model, batch) for model in found), atol=1e-4, rtol=1e-4)


def test_layers_that_the_encoder_has_not_are_refused_at_once(build):
    geometry = TinyGeo(heads=())
    with pytest.raises(ValueError, match="Add reads layer 5 of TinyGeo, which has 3; choose -3 to 2"):
        build(made(Add, layer=5), geometry=geometry)


@torch.no_grad()
def test_layers_of_an_encoder_that_predicts(build):
    """Two levels of a real encoder, on cells as large as the visual tokens."""
    model = build(made(SVEMath, layers=[-2, -1]), geometry=TinyGeo(heads=()))
    batch = batch_of(model)
    assert model.fusion.context[0][0].in_features == model.geometry.width
    assert bool(model(batch).logits.isfinite().all())
