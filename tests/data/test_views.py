"""Views: a sample's scene as an example has it, at another size, and numbered in a batch."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from gnomon.data.cameras import project
from gnomon.data.collate import collate_rows
from gnomon.data.errors import BadSample
from gnomon.data.processor import Processor
from gnomon.data.sample import Sample, Turn
from gnomon.data.sources.scenes.source import Scenes
from gnomon.data.views import prepare
from gnomon.vlm.layout import ImageSpec, Kind, ViewsSpec


@pytest.fixture(scope="module")
def scene() -> Sample:
    return Scenes(count=4, size=(64, 96))[0]


def test_cameras_follow_the_size(scene):
    """The same point of the scene falls on the same spot of the picture, whatever its size."""
    views = prepare(scene.geometry, ViewsSpec(14, size=(70, 140)), images=[0], name="it")
    assert views.pixels.shape[1:] == (3, 70, 140) and views.depth.shape[1:] == (70, 140)
    points = scene.geometry.points[0].reshape(-1, 3)[::97]
    before, _ = project(points, scene.geometry.intrinsics[0], scene.geometry.extrinsics[0])
    after, _ = project(points, views.intrinsics[0].numpy(), views.extrinsics[0].numpy())
    np.testing.assert_allclose(after, before * np.array([140 / 96, 70 / 64]), atol=1e-3)


def test_depth_is_never_mixed_over_edges(scene):
    views = prepare(scene.geometry, ViewsSpec(8, size=(32, 32)), images=[], name="it")
    assert set(views.depth.flatten().tolist()) <= set(scene.geometry.depth.astype(np.float32).flatten().tolist())


def test_size_is_rounded_to_whole_cells_and_views_are_counted(scene):
    spec = ViewsSpec(14, most=8)
    assert prepare(scene.geometry, spec, images=[3], name="it").pixels.shape[2:] == spec.target(64, 96) == (70, 98)
    count = len(scene.geometry.views)
    with pytest.raises(BadSample, match=f"{count} views are more than max_views 1"):
        prepare(scene.geometry, ViewsSpec(14, most=1), images=[], name="it")


def test_a_batch_numbers_images_over_rows_and_leaves_room_for_scene_tokens(scene, demo_tokenizer):
    processor = Processor(demo_tokenizer, "demo", ImageSpec((32, 32), 16), views=ViewsSpec(16, extra=3, size=(32, 32)))
    plain = Sample("plain", (Turn("user", "<image>?"), Turn("assistant", "a")), (np.zeros((9, 9, 3), np.uint8),))
    examples = [processor.example(sample, train=True) for sample in (plain, scene, plain, scene)]
    batch = collate_rows([examples[:3], examples[3:]], pad_id=0)
    rest = [-1] * (len(scene.geometry.views) - 1)
    assert [views.image for views in batch.views] == [[1, *rest], [3, *rest]]
    slots = batch.layout.kind == Kind.GEOMETRY
    assert slots.sum(1).tolist() == [3, 3] and (batch.layout.image[slots] == -1).all()
    # right behind the scene's own image
    last = int((batch.layout.image[0] == 1).nonzero().max())
    assert slots[0].nonzero()[:, 0].tolist() == [last + 1, last + 2, last + 3]


def test_a_model_without_geometry_leaves_views_aside(scene, demo_tokenizer):
    example = Processor(demo_tokenizer, "demo", ImageSpec((32, 32), 16)).example(scene, train=True)
    assert example.views is None and not (example.image < -1).any()


def test_moving_a_batch_moves_its_views(scene, demo_tokenizer):
    processor = Processor(demo_tokenizer, "demo", ImageSpec((32, 32), 16), views=ViewsSpec(16, size=(32, 32)))
    batch = collate_rows([[processor.example(scene, train=True)]], pad_id=0).to("meta")
    assert batch.views[0].pixels.device == batch.views[0].intrinsics.device == torch.device("meta")
