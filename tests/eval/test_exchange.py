"""Geometry exchanged: the same items with another scene's, at any batch size; who has none keeps none."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import islice

import pytest
import torch

from gnomon.cli.main import main
from gnomon.data.example import Example
from gnomon.eval.benchmarks.diagrams import Diagrams
from gnomon.eval.benchmarks.scenes import Scenes
from gnomon.eval.evaluate import evaluate
from gnomon.eval.exchange import check, donors, exchanged, usual
from gnomon.eval.record import REDUCED, read_items
from gnomon.eval.session import open_model
from gnomon.vlm.fusion.add import Add
from gnomon.vlm.fusion.gst_vla import GSTVLA
from gnomon.vlm.geometry.known import Known
from gnomon.vlm.layout import Views
from gnomon.vlm.model import VLM
from gnomon.vlm.save import save


def with_geometry(loaded, fusion):
    torch.manual_seed(0)
    parts = loaded.model.encoder, loaded.model.connector, loaded.model.lm
    model = VLM(*parts, image_size=(112, 112), template="demo", geometry=Known(patch=16), fusion=fusion).eval()
    return replace(loaded, model=model, processor=replace(loaded.processor, views=model.views))


@pytest.fixture(scope="module")
def plain(model_dir):
    return open_model(str(model_dir), device="cpu")


@pytest.fixture(scope="module")
def loaded(plain):
    return with_geometry(plain, Add(align="merge"))


def bench():
    return Scenes(tasks=["nearer", "count"])


def raws(folder):
    return {r.key: r.raw for r in read_items(folder)}


def test_own_other_and_no_geometry_are_three_different_runs(loaded, plain, tmp_path):
    result = evaluate(loaded, [bench()], out=tmp_path, limit=4, geometry=["other", "none"])
    assert [one.name for one in result.compared] == ["as it is", "geometry:other", "geometry:none"]
    own, other, none = (raws(p) for p in (tmp_path, *(tmp_path / REDUCED / f"geometry-{m}" for m in ("other", "none"))))
    assert own.keys() == other.keys() and own != other and own != none
    # without geometry the model is the plain one
    evaluate(replace(loaded, model=plain.model, processor=plain.processor), [bench()], out=tmp_path / "plain", limit=4)
    assert none == raws(tmp_path / "plain")


def test_answers_do_not_depend_on_batches(loaded, tmp_path):
    for size in (1, 3):
        evaluate(loaded, [bench()], out=tmp_path / str(size), limit=3, batch_size=size, geometry=["other"])
    assert raws(tmp_path / "1" / REDUCED / "geometry-other") == raws(tmp_path / "3" / REDUCED / "geometry-other")


def test_an_item_gets_the_views_of_another_scene_in_its_own_place(loaded):
    benchmark, processor = bench(), loaded.processor
    others = donors([benchmark], processor)
    assert len(others) == 16
    for sample in benchmark.examples(4):
        example = processor.example(benchmark.prompt(sample), train=False)
        found = exchanged(example, "other", others).views
        assert any(found.pixels is views.pixels for views in others)
        assert found.pixels.shape != example.views.pixels.shape or not torch.equal(found.pixels, example.views.pixels)
        assert found.image == [0] + [-1] * (len(found.pixels) - 1)
        assert exchanged(example, "none", others).views is None and exchanged(example, "own", others) is example


def views(value: int, size: tuple[int, int] = (32, 32)) -> Views:
    return Views(torch.full((2, 3, *size), value, dtype=torch.uint8), [0, -1])


def test_many_questions_of_one_scene_are_one_donor(loaded):
    class Repeating(Scenes):
        def examples(self, limit=None):
            for sample in super().examples(3):
                for turn in range(20):
                    yield replace(sample, id=f"{sample.id}/{turn}")

    benchmark, processor = Repeating(tasks=["nearer"]), loaded.processor
    others = donors([benchmark], processor)
    assert len(others) == 3
    for sample in islice(benchmark.examples(), 0, 60, 20):
        example = processor.example(benchmark.prompt(sample), train=False)
        found = exchanged(example, "other", others).views
        assert not torch.equal(found.pixels, example.views.pixels)


def test_another_scene_of_the_same_size_is_preferred(loaded):
    example = Example("x", *[torch.zeros(1).long()] * 4, views=views(0))
    wide = [views(k, (32, 64)) for k in range(1, 16)]
    assert exchanged(example, "other", [*wide[:9], views(99), *wide[9:]]).views.pixels.unique().tolist() == [99]
    assert exchanged(example, "other", wide).views.pixels.shape[3] == 64


@pytest.fixture(scope="module")
def fused(surveying, tmp_path_factory):
    """Directory of a model whose answers change with the geometry."""
    return save(surveying(Known(patch=16), Add(align="merge")).model, tmp_path_factory.mktemp("fused") / "m")


def evaluated(capsys, folder, *options):
    """Names of what `gnomon evaluate` compared."""
    command = ["evaluate", str(folder), "--benchmarks", "scenes", "--tasks", "nearer,count", "--limit", "2"]
    assert main([*command, "--device", "cpu", "--json", *map(str, options)]) == 0
    return [one["name"] for one in json.loads(capsys.readouterr().out).get("compared", [])]


def test_a_fused_model_is_asked_with_another_scenes_geometry_unless_told(fused, capsys, tmp_path):
    both = ["as it is", "geometry:other"]
    assert evaluated(capsys, fused, "--out", tmp_path / "usual") == both
    assert evaluated(capsys, fused, "--out", tmp_path / "none", "--geometry", "none") == ["as it is", "geometry:none"]
    assert evaluated(capsys, fused, "--out", tmp_path / "own", "--geometry", "own") == []
    assert not (tmp_path / "own" / REDUCED).exists()
    told = ["evaluate", str(fused), "--benchmarks", "scenes", "--geometry", "own", "other"]
    assert main(told) == 2
    assert capsys.readouterr().err.startswith("gnomon: --geometry own stands for no further pass")


def test_a_run_from_before_gets_what_it_lacks_and_keeps_what_it_has(fused, capsys, tmp_path):
    evaluated(capsys, fused, "--out", tmp_path / "old", "--geometry", "own")
    before = (tmp_path / "old" / "items.jsonl").read_bytes()
    assert evaluated(capsys, fused, "--out", tmp_path / "old") == ["as it is", "geometry:other"]
    assert (tmp_path / "old" / "items.jsonl").read_bytes() == before
    evaluated(capsys, fused, "--out", tmp_path / "new", "--geometry", "other")
    own, other = raws(tmp_path / "old"), raws(tmp_path / "old" / REDUCED / "geometry-other")
    assert len(other) == 4 and own.keys() == other.keys() and own != other
    assert own == raws(tmp_path / "new") and other == raws(tmp_path / "new" / REDUCED / "geometry-other")
    # and the way back only leaves the comparison out
    assert evaluated(capsys, fused, "--out", tmp_path / "old", "--geometry", "own") == []
    assert raws(tmp_path / "old" / REDUCED / "geometry-other") == other


def test_nothing_is_exchanged_without_a_fusion_or_without_scenes(loaded, plain):
    class Pictures(Scenes):
        def examples(self, limit=None):
            return (replace(sample, geometry=None) for sample in super().examples(2))

    assert usual([bench()], loaded.model, loaded.processor) == ["other"]
    assert usual([bench()], plain.model, plain.processor) == []
    assert usual([Pictures()], loaded.model, loaded.processor) == []
    assert usual([Pictures(), bench()], loaded.model, loaded.processor) == ["other"]


def test_one_scene_alone_has_none_to_exchange_with(loaded):
    class Single(Scenes):
        def examples(self, limit=None):
            sample = next(super().examples(1))
            return iter([replace(sample, id=f"nearer/{k}") for k in range(3)])

    assert usual([Single(tasks=["nearer"])], loaded.model, loaded.processor) == []
    assert usual([Single(tasks=["nearer"]), bench()], loaded.model, loaded.processor) == ["other"]
    with pytest.raises(ValueError, match="have 1 scenes; exchanging their geometry takes at least 2"):
        donors([Single(tasks=["nearer"])], loaded.processor)


def test_too_few_scenes_are_told_before_old_answers_are_discarded(loaded, tmp_path):
    evaluate(loaded, [bench()], out=tmp_path, limit=1)
    before = (tmp_path / "items.jsonl").read_bytes()
    with pytest.raises(ValueError, match="have 0 scenes"):
        evaluate(loaded, [Diagrams(tasks=["shape"])], out=tmp_path, limit=1, fresh=True, geometry=["other"])
    assert (tmp_path / "items.jsonl").read_bytes() == before


def test_what_cannot_be_exchanged_is_refused_in_one_line(loaded, plain, model_dir, capsys):
    with pytest.raises(ValueError, match="the model has no geometry encoder"):
        check(plain.model, "other")
    with pytest.raises(ValueError, match="GSTVLA adds 8 tokens for every scene"):
        check(with_geometry(plain, GSTVLA(tokens=8, width=16, heads=2)).model, "none")
    assert main(["evaluate", str(model_dir), "--benchmarks", "scenes", "--limit", "1", "--geometry", "other"]) == 2
    assert "no geometry encoder; leave --geometry out" in capsys.readouterr().err
