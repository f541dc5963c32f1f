"""The shared nouns: image sizes to grids, validity of padded features, moving as one."""

import pytest
import torch
from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

from gnomon.vlm.layout import IGNORE, Batch, Features, ImageSpec, Kind, TokenLayout


@pytest.mark.parametrize(
    ("spec", "image", "pixels", "grid"),
    [
        (ImageSpec((224, 224), 16), (50, 900), (224, 224), (14, 14)),
        (ImageSpec((96, 160), 16, fit="pad"), (1, 1), (96, 160), (6, 10)),
        (ImageSpec(None, 14, fit="native"), (100, 50), (98, 56), (7, 4)),
        (ImageSpec(None, 16, fit="native", limit=64 * 64), (256, 64), (128, 32), (8, 2)),
        (ImageSpec(None, 16, fit="native"), (3, 3), (16, 16), (1, 1)),
    ],
)
def test_target_and_grid(spec, image, pixels, grid):
    assert spec.target(*image) == pixels
    assert spec.grid(*pixels) == grid


@pytest.mark.parametrize("height", [17, 300, 1031, 4096])
@pytest.mark.parametrize("width", [19, 640, 5000])
def test_native_keeps_to_whole_cells_and_the_limit(height, width):
    spec = ImageSpec(None, 14, fit="native", limit=512 * 512)
    h, w = spec.target(height, width)
    assert h % 14 == 0 and w % 14 == 0 and h * w <= 512 * 512


@pytest.mark.parametrize("least", [0, 56 * 56, 256 * 256])
def test_native_sizes_are_those_of_qwen2_5_vl(least):
    draw = torch.Generator().manual_seed(least)
    for height, width in torch.randint(1, 3000, (300, 2), generator=draw).tolist():
        spec = ImageSpec(None, 28, fit="native", limit=28 * 28 * 1280, least=least)
        if max(height, width) <= 200 * min(height, width):
            theirs = smart_resize(height, width, factor=28, min_pixels=least, max_pixels=28 * 28 * 1280)
            # where theirs has no row at all, there is one here
            assert spec.target(height, width) == tuple(max(28, side) for side in theirs)


@pytest.mark.parametrize(
    ("args", "told"),
    [
        ({"size": (100, 96), "cell": 16}, "not a multiple of 16"),
        ({"size": None, "cell": 16}, "native takes no size"),
        ({"size": (96, 96), "cell": 16, "fit": "stretch"}, "'stretch' is unknown"),
        ({"size": (96, 96), "cell": 16, "positions": "spiral"}, "'spiral' are unknown"),
        ({"size": None, "cell": 16, "fit": "native", "limit": 9, "least": 10}, "not between 0 and the limit of 9"),
    ],
)
def test_bad_image_rules(args, told):
    with pytest.raises(ValueError, match=told):
        ImageSpec(**args)


def test_features_valid():
    features = Features(torch.zeros(2, 6, 4), [(2, 3), (1, 2)])
    assert features.counts == [6, 2]
    assert features.valid.tolist() == [[True] * 6, [True, True, False, False, False, False]]


def test_supervised_counts_what_is_predicted():
    labels = torch.tensor([[5, 6, IGNORE, 7], [IGNORE, IGNORE, IGNORE, 1]])
    batch = Batch(torch.zeros(2, 4, dtype=torch.long), labels, TokenLayout.text(2, 4))
    # the first position of a row has no token before it to predict it from
    assert batch.supervised == 3


def test_a_batch_moves_whole():
    layout = TokenLayout.text(1, 3)
    layout.document = torch.zeros(1, 3)
    batch = Batch(torch.zeros(1, 3), torch.zeros(1, 3), layout, [torch.zeros(3, 4, 4)], ["a"], 2.0)
    moved = batch.to("meta")
    tensors = [moved.ids, moved.labels, *moved.pixels, moved.layout.kind, moved.layout.cell, moved.layout.document]
    assert all(t.device.type == "meta" for t in tensors)
    assert moved.samples == ["a"] and moved.targets == 2.0


def test_text_layout():
    layout = TokenLayout.text(2, 3, start=4)
    assert layout.position.tolist() == [[4, 5, 6]] * 2
    assert layout.visible.all() and not layout.is_image.any()
    assert (layout.kind == Kind.TEXT).all() and (layout.image == -1).all()
