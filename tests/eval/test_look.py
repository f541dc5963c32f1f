"""A second look: known geometry has no error, the gate is what its closed form says, and few files are kept."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from gnomon.eval import look as work
from gnomon.eval.benchmarks.diagrams import Diagrams
from gnomon.eval.benchmarks.scenes import Scenes
from gnomon.eval.evaluate import evaluate
from gnomon.eval.look import KEPT, keep, look
from gnomon.eval.record import Journal, read_items
from gnomon.eval.session import open_model
from gnomon.eval.sight import path_of, read
from gnomon.vlm.fusion.add import Add
from gnomon.vlm.fusion.geosr_dynamic import GeoSRDynamic
from gnomon.vlm.fusion.residual_gate import ResidualGate
from gnomon.vlm.fusion.weighted import Weighted
from gnomon.vlm.geometry.depth_only import DepthOnly
from gnomon.vlm.geometry.known import Known
from gnomon.vlm.geometry.tinygeo import TinyGeo
from gnomon.vlm.reduction.random import Random


def example(loaded, benchmark=None, number=0):
    benchmark = benchmark or Scenes(tasks=["nearer"], views=3)
    samples = list(benchmark.examples(number + 1))
    return loaded.processor.example(benchmark.prompt(samples[number]), train=False)


def seen(loaded, given):
    return look(loaded.model, given, pad_id=loaded.processor.pad_id)


def test_known_geometry_has_no_error_and_the_views_that_were_given(surveying):
    loaded = surveying(Known(patch=16), Weighted(align="merge"))
    given = example(loaded)
    found = seen(loaded, given)
    assert found.facts.abs_rel == pytest.approx(0) and found.facts.error == pytest.approx(0, abs=1e-5)
    assert found.facts.by_view == (0, 0, 0) and found.facts.shown == [0] and found.facts.views == 3
    assert np.array_equal(found.pixels, given.views.pixels.permute(0, 2, 3, 1).numpy())
    assert np.allclose(found.depth, given.views.depth) and np.allclose(found.true_depth, given.views.depth)
    count = min(work.POINTS, int((given.views.depth > 0).sum()))
    assert len(found.cloud.points) == len(found.true_cloud.points) == count
    # a scene's first camera is where its points are counted from, and colours are those of the pixels
    assert np.allclose(found.true_cloud.cameras[0], np.eye(3, 4), atol=1e-6) and found.true_cloud.points[:, 2].min() > 0
    colours = {tuple(colour) for colour in found.pixels.reshape(-1, 3)}
    assert {tuple(colour) for colour in found.true_cloud.colours} <= colours


def test_the_gate_is_what_its_closed_form_says(surveying):
    """Half of either at first; with w and g, g / (w + g); behind tanh(a) of that."""
    weighted = Weighted(align="merge")
    loaded = surveying(Known(patch=16), weighted)
    (gate,) = seen(loaded, example(loaded)).gates.values()
    assert gate.shape == (7, 7) and np.allclose(gate, 0.5)
    with torch.no_grad():
        weighted.geometry.fill_(1.5)
    assert np.allclose(seen(loaded, example(loaded)).gates[0], 0.75)
    closed = ResidualGate(Weighted(align="merge"))
    loaded = surveying(Known(patch=16), closed)
    assert np.allclose(seen(loaded, example(loaded)).gates[0], 0)
    with torch.no_grad():
        closed.gate.fill_(0.3)
    assert np.allclose(seen(loaded, example(loaded)).gates[0], 0.5 * math.tanh(0.3))


def test_every_view_that_is_an_image_has_a_gate_of_its_own(surveying):
    loaded = surveying(Known(patch=16), GeoSRDynamic(merge=1, queries=3, heads=4, hidden=16))
    found = seen(loaded, example(loaded, Scenes(tasks=["nearer"], views=3, shown="all")))
    assert sorted(found.gates) == found.facts.shown == [0, 1, 2]
    assert not np.allclose(found.gates[0], found.gates[1])


def test_reducers_do_not_take_cells_from_the_picture(surveying):
    loaded = surveying(Known(patch=16), Weighted(align="merge"))
    before = seen(loaded, example(loaded))
    loaded.model.reducers = [Random(0.5)]
    after = seen(loaded, example(loaded))
    assert np.array_equal(before.gates[0], after.gates[0]) and len(loaded.model.reducers) == 1


def test_encoders_show_what_they_have(surveying):
    loaded = surveying(TinyGeo(heads=()), Add(align="pool"))
    found = seen(loaded, example(loaded))
    assert found.depth is found.cloud is None and found.true_depth is not None and found.gates == {}
    loaded = surveying(TinyGeo(), Add(align="pool"))
    found = seen(loaded, example(loaded))
    assert not found.facts.metric and found.facts.factor > 0 and found.facts.point_factor > 0
    known = found.true_depth > 0
    assert np.median(found.depth[known]) == pytest.approx(np.median(found.true_depth[known]), rel=1e-3)


def test_without_truth_there_is_the_prediction(surveying):
    loaded = surveying(TinyGeo(), Add(align="pool"))
    given = example(loaded)
    given.views.depth = given.views.extrinsics = given.views.intrinsics = None
    found = seen(loaded, given)
    assert found.facts.abs_rel is found.facts.factor is found.true_depth is found.true_cloud is None
    assert len(found.cloud.points) == work.POINTS and found.cloud.cameras.shape == (3, 3, 4)


def test_heads_that_these_views_do_not_allow_are_left_out(surveying):
    """A DPT of the DPT kind predicts depth of square views alone, and no depth estimator points without intrinsics."""
    config = {"model_type": "dpt", "hidden_size": 24, "num_hidden_layers": 4, "num_attention_heads": 2}
    config |= {"intermediate_size": 32, "image_size": 32, "patch_size": 16, "backbone_out_indices": [0, 1, 2, 3]}
    config |= {"neck_hidden_sizes": [8, 8, 8, 8], "fusion_hidden_size": 8, "is_hybrid": False}
    loaded = surveying(DepthOnly(config=config), Add(align="pool"))
    given = example(loaded)
    assert (found := seen(loaded, given)).depth is not None and found.facts.lent
    given.views.intrinsics = None
    assert (found := seen(loaded, given)).depth is not None and found.cloud is None
    for name in ("pixels", "depth"):
        setattr(given.views, name, getattr(given.views, name)[..., :96])
    assert seen(loaded, given).depth is None


def test_points_of_a_world_without_cameras_are_not_shown(surveying):
    class Adrift(TinyGeo):
        def forward(self, scenes, *, layers=(), heads=()):
            return replace(super().forward(scenes, layers=layers, heads=heads), frame="world")

    loaded = surveying(Adrift(heads=("depth", "points")), Add(align="pool"))
    found = seen(loaded, example(loaded))
    assert found.cloud is None and found.facts.adrift and found.facts.error is None and found.depth is not None


def test_large_scenes_stay_small(surveying):
    loaded = surveying(Known(patch=16), Add(align="pool"))
    given = example(loaded, Scenes(tasks=["nearer"], views=10))
    given.views.pixels = given.views.pixels.repeat_interleave(2, 2).repeat_interleave(2, 3)
    given.views.depth = given.views.depth.repeat_interleave(2, 1).repeat_interleave(2, 2)
    given.views.intrinsics[:, :2] *= 2
    found = seen(loaded, given)
    assert found.facts.views == 10 and len(found.facts.by_view) == 10
    assert found.pixels.shape == (8, 160, 160, 3) and found.depth.shape == found.true_depth.shape == (8, 160, 160)
    assert len(found.cloud.points) == work.POINTS


def test_evaluation_keeps_the_first_items_that_have_views(surveying, tmp_path):
    loaded = surveying(Known(patch=16), Weighted(align="merge"))
    benchmarks = [Diagrams(tasks=["angle"], size=(112, 112)), Scenes(tasks=["nearer", "count"])]
    result = evaluate(loaded, benchmarks, out=tmp_path, limit=4, geometry=["other"])
    files = sorted((tmp_path / "geometry").glob("*.npz"))
    scenes = [r for r in read_items(tmp_path) if r.benchmark == "scenes"]
    assert len(files) == KEPT and set(files) <= {path_of(tmp_path, r.task, r.sample) for r in scenes}
    assert all(read(path).facts.encoder == "Known" for path in files)
    # what is there is not made again; another run in its place begins anew
    before = [path.stat().st_mtime_ns for path in files]
    evaluate(loaded, benchmarks, out=tmp_path, limit=4, geometry=["other"])
    assert [path.stat().st_mtime_ns for path in files] == before
    evaluate(loaded, benchmarks[:1], out=tmp_path, limit=1, fresh=True)
    assert not list((tmp_path / "geometry").glob("*")) and result.rows


def test_a_model_without_geometry_keeps_nothing(model_dir, tmp_path):
    keep(open_model(str(model_dir), device="cpu"), [], Journal(tmp_path, {}), [])
    assert list(tmp_path.iterdir()) == []
