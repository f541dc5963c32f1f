"""What every fusion promises; the members are whatever stands in vlm/fusion."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from fusing import (
    CASES,
    ROWS,
    batch_of,
    every,
    example_of,
    images_of,
    made,
    members,
    opened,
    placed,
    plain_of,
    takes,
    with_geometry,
)
from torch import Tensor

from gnomon.data.collate import collate, collate_rows
from gnomon.vlm.fusion.add import Add
from gnomon.vlm.fusion.residual_gate import ResidualGate
from gnomon.vlm.fusion.sve_math import SVEMath
from gnomon.vlm.geometry.base import GeometryEncoder, GeometryInput, GeometryOutput
from gnomon.vlm.geometry.known import Known
from gnomon.vlm.geometry.tinygeo import TinyGeo
from gnomon.vlm.layout import Kind
from gnomon.vlm.plan import ReductionPlan
from gnomon.vlm.reduction.random import Random
from gnomon.vlm.reduction.segpruner import SeGPruner
from gnomon.vlm.reduction.visionzip import VisionZip
from gnomon.vlm.save import load, save


def test_members_are_found():
    names = {cls.__name__ for cls in members()}
    assert {"Add", "GeoSR", "Cross", "ResidualGate", "GSTVLA", "SVEMath", "SpatialMLLM"} <= names and len(CASES) > 20


@placed
@torch.no_grad()
def test_images_without_geometry_keep_their_tokens_bit_for_bit(cls, options, fused):
    plain, model = fused(), opened(fused(made(cls, **options)))
    batch = batch_of(model)
    before, after, told = images_of(plain, plain_of(batch)), images_of(model, batch), with_geometry(batch)
    assert torch.equal(before[~told], after[~told])
    if cls.__name__ != "GSTVLA":
        # of one corner nothing is known
        assert int((before[told] != after[told]).any(1).sum()) >= int(told.sum()) - 2


@every
@torch.no_grad()
def test_a_batch_without_geometry_is_the_plain_models(cls, fused):
    plain, model = fused(), opened(fused(made(cls)))
    rows = [(text, images, 0, 0) for text, images, _, _ in ROWS]
    assert torch.equal(model(batch_of(model, rows)).logits, plain(batch_of(plain, rows)).logits)


@placed
@torch.no_grad()
def test_rows_of_a_mixed_batch_equal_the_rows_alone(cls, options, fused):
    model = opened(fused(made(cls, **options)))
    together = model(batch_of(model)).logits
    for row, found in zip(ROWS, together):
        alone = model(batch_of(model, [row])).logits[0]
        torch.testing.assert_close(found[: len(alone)], alone, atol=3e-5, rtol=1e-4)


def spoilt(bad: float) -> Callable[[Tensor], Tensor]:
    """Scenes of two views have this depth all over, others here and there."""
    return lambda depth: torch.where((depth > 4) | torch.tensor(len(depth) == 2), bad, depth)


@every
@torch.no_grad()
def test_a_closed_gate_is_the_plain_model_bit_for_bit(cls, fused):
    """Whatever geometry holds: nothing of it, or what is no number."""
    plain = fused()
    closed = [ResidualGate(made(cls))]
    closed += [made(cls, zero=True)] if "zero" in takes(cls) else []
    for fusion in closed:
        model = fused(fusion)
        batch = batch_of(model)
        expected = images_of(plain, plain_of(batch))
        for bad in (0.0, math.inf, math.nan):
            assert torch.equal(images_of(model, batch_of(model, depth=spoilt(bad))), expected)
        assert fusion.zero == (not fusion.extra)
        if fusion.zero:
            assert torch.equal(model(batch).logits, plain(plain_of(batch)).logits)


@every
@torch.no_grad()
def test_geometry_that_is_no_number_stays_out_of_open_gates_too(cls, fused):
    model = opened(fused(made(cls)))
    for bad in (math.inf, math.nan):
        assert bool(model(batch_of(model, depth=spoilt(bad))).logits.isfinite().all())


@placed
@pytest.mark.parametrize("reducer", [Random(0.5), VisionZip(0.5)], ids=lambda r: type(r).__name__)
@torch.no_grad()
def test_with_reducers_before_and_behind(cls, options, reducer, fused):
    """Random acts behind the connector, VisionZip (one source of whose tokens is no cell) behind the encoder."""
    model = opened(fused(made(cls, **options), reducers=[reducer]))
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
def test_what_survives_a_reducer_has_the_geometry_of_its_own_cell(cls, options, fused):
    """Dropping tokens behind the fusion, or before it, comes to the same for fusions that take tokens one by one."""
    mixes = {"ConcatAttention", "GeoSRCross", "SVEMath"}
    model = opened(fused(made(cls, **options)))
    batch = batch_of(model, [ROWS[0]])
    seen = model.see(batch.pixels, views=batch.views)[0]
    model.scenery.tokens(model.lm.embed(batch.ids), batch, seen.survey, [(seen.members, seen.features)])
    features = seen.features
    if model.fusion.behind:
        features = model.connector({"vision": features})
    whole = model.scenery.fuse(features, seen.members, seen.survey, touch=False).tokens
    keep = ReductionPlan.keep(torch.tensor([[1, 4, 5, 13]]))
    fewer = model.scenery.fuse(features.reduced(keep), seen.members, seen.survey, touch=False).tokens
    assert fewer.shape[1] == 4
    if cls.__name__ not in mixes:
        torch.testing.assert_close(fewer, whole[:, [1, 4, 5, 13]], atol=1e-5, rtol=1e-4)


@every
@torch.no_grad()
def test_options_and_weights_come_back_from_a_saved_model(cls, fused, tmp_path):
    model = opened(fused(made(cls)))
    save(model, tmp_path / "m")
    again = load(tmp_path / "m")
    assert again.fusion.spec() == model.fusion.spec()
    batch = batch_of(model)
    assert torch.equal(again(batch).logits, model(batch).logits)


@every
@torch.no_grad()
def test_in_half_precision(cls, fused):
    model = opened(fused(made(cls))).to(torch.bfloat16)
    logits = model(batch_of(model)).logits
    assert logits.dtype == torch.bfloat16 and bool(logits.isfinite().all())


@pytest.mark.parametrize("cls", [c for c in members() if made(c).align == "merge"], ids=lambda cls: cls.__name__)
@pytest.mark.parametrize("patch", [8, 2])
@torch.no_grad()
def test_grids_that_do_not_fit_are_refused_in_one_line(cls, patch, fused):
    model = fused(made(cls), patch=patch)
    with pytest.raises(ValueError, match=r"merge|merged") as error:
        model(batch_of(model))
    assert "\n" not in str(error.value)


@every
def test_openness_is_a_share(cls, fused):
    model = opened(fused(made(cls)))
    batch = batch_of(model)
    seen = model.see(batch.pixels, views=batch.views)[0]
    model.scenery.tokens(model.lm.embed(batch.ids), batch, seen.survey, [(seen.members, seen.features)])
    places, known = seen.survey.of(seen.members)[0]
    features = seen.features if not model.fusion.behind else model.connector({"vision": seen.features})
    found = model.fusion.openness(model.scenery.parts(features.at(places), known, seen.survey))
    if found is not None:
        assert found.shape == (len(places), 15) and bool(((found >= 0) & (found <= 1)).all())


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
def test_points_of_another_frame_tell_the_same(cls, fused):
    encoders: list[type[GeometryEncoder]] = [Known, InTheWorld]
    found = [opened(fused(made(cls), geometry=encoder(patch=4, octaves=2))) for encoder in encoders]
    batch = batch_of(found[0])
    torch.testing.assert_close(*(images_of(model, batch) for model in found), atol=1e-4, rtol=1e-4)


def test_layers_that_the_encoder_has_not_are_refused_at_once(fused):
    geometry = TinyGeo(heads=())
    with pytest.raises(ValueError, match="Add reads layer 5 of TinyGeo, which has 3; choose -3 to 2"):
        fused(made(Add, layer=5), geometry=geometry)


@torch.no_grad()
def test_layers_of_an_encoder_that_predicts(fused):
    """Two levels of a real encoder, on cells as large as the visual tokens."""
    model = fused(made(SVEMath, layers=[-2, -1]), geometry=TinyGeo(heads=()))
    batch = batch_of(model)
    assert model.fusion.context[0][0].in_features == model.geometry.width
    assert bool(model(batch).logits.isfinite().all())


@every
@torch.no_grad()
def test_packed_and_padded_samples_are_told_what_they_are_told_alone(cls, fused):
    """Scenes beside their own question; of their neighbours' they know nothing."""
    model = opened(fused(made(cls)))
    rows = [([3, 4, 11, 12], 1), ([5, 6, 7, 13, 14, 15], 2), ([8, 9], 3)]
    examples = [example_of(model, *row) for row in rows]
    packed, embedded = collate_rows([examples], pad_id=0), []
    for example in examples:
        batch = collate([example], pad_id=0)
        embedded.append(model.embed(batch)[0][0])
    torch.testing.assert_close(model.embed(packed)[0][0], torch.cat(embedded), atol=1e-5, rtol=1e-5)
    for row, alone in zip(model.embed(collate(examples, pad_id=0, side="left"))[0], embedded):
        torch.testing.assert_close(row[-len(alone) :], alone, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_reducers_that_are_asked_about_first_get_their_points(fused):
    """The evaluator looks once for all variants, before it sets any."""
    model = fused(made(Add))
    batch = batch_of(model, ROWS[:1])
    seen = model.see(batch.pixels, [SeGPruner(0.5)], batch.views)
    model.reducers = [SeGPruner(0.5)]
    assert torch.equal(model.read(batch, seen=seen).hidden, model.read(batch).hidden)
