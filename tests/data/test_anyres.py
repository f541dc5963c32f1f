"""Crops and their tokens against transformers' own functions, and one example by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from transformers.image_processing_utils import select_best_resolution
from transformers.models.llava_next.modeling_llava_next import unpad_image

from gnomon.data import anyres
from gnomon.vlm.layout import ImageSpec

NEXT = ((336, 672), (672, 336), (672, 672), (1008, 336), (336, 1008))
SPEC = ImageSpec((336, 336), 14, fit="anyres", canvases=NEXT)
SMALL = ImageSpec((4, 4), 2, fit="anyres", canvases=((4, 8), (8, 8)))
DRAWN = np.random.default_rng(0).integers(2, 2000, (150, 2)).tolist()
SIZES = [*DRAWN, [2, 1999], [1999, 2], [500, 500], [672, 336]]


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_canvas_and_tokens_are_those_of_llava_next(height, width):
    best = anyres.canvas(height, width, SPEC)
    assert best == tuple(select_best_resolution((height, width), [list(c) for c in NEXT]))
    # the original's way: number all cells of all crops, lay the crops side by side, cut the rim off, end the rows
    down, across = best[0] // 336, best[1] // 336
    numbers = torch.arange(1, down * across + 1).view(down, across, 1, 1).expand(-1, -1, 24, 24)
    cells = (
        torch.cartesian_prod(torch.arange(24), torch.arange(24)).view(1, 1, 24, 24, 2).expand(down, across, -1, -1, -1)
    )
    maps = torch.cat([numbers[..., None], cells], -1).permute(4, 0, 2, 1, 3).reshape(3, down * 24, across * 24)
    maps = unpad_image(maps, (height, width))
    ended = torch.cat([maps, torch.full((3, maps.shape[1], 1), -1)], 2)
    theirs = ended.flatten(1).T
    crop, cell = anyres.slots(height, width, SPEC)
    assert (crop[:576] == 0).all() and cell[:576].tolist() == [[r, c] for r in range(24) for c in range(24)]
    assert len(crop) == 576 + len(theirs)
    assert cell[576:].tolist() == theirs[:, 1:].tolist()
    inner = theirs[:, 0] >= 0
    # crops without a token are not counted
    used = theirs[inner, 0].unique(return_inverse=True)[1] + 1
    assert crop[576:][inner.numpy()].tolist() == used.tolist()


def test_an_example_by_hand():
    """4 x 8 pixels fit the first canvas exactly: two crops of 2 x 2 cells, rows of four and their ends."""
    pixels = np.arange(4 * 8 * 3, dtype=np.uint8).reshape(4, 8, 3)
    whole, left, right = anyres.crops(pixels, SMALL)
    assert whole.shape == (3, 4, 4)
    assert np.array_equal(left.permute(1, 2, 0), pixels[:, :4]) and np.array_equal(
        right.permute(1, 2, 0), pixels[:, 4:]
    )
    crop, cell = anyres.slots(4, 8, SMALL)
    assert crop.tolist() == [0, 0, 0, 0, 1, 1, 2, 2, 2, 1, 1, 2, 2, 2]
    ends = [-1, -1]
    assert cell[4:].tolist() == [[0, 0], [0, 1], [0, 0], [0, 1], ends, [1, 0], [1, 1], [1, 0], [1, 1], ends]


def test_the_picture_lies_in_the_middle_on_black():
    pixels = np.full((4, 4, 3), 200, np.uint8)
    spec = ImageSpec((4, 4), 2, fit="anyres", canvases=((4, 8),))
    _, left, right = anyres.crops(pixels, spec)
    both = torch.cat([left, right], 2)
    assert (both[..., 2:6] == 200).all() and (both[..., :2] == 0).all() and (both[..., 6:] == 0).all()
    crop, _ = anyres.slots(4, 4, spec)
    assert crop[4:].tolist() == [1, 2, 2, 1, 2, 2]


def test_crops_without_a_token_are_not_made():
    spec = ImageSpec((4, 4), 2, fit="anyres", canvases=((12, 4),))
    pixels = np.asarray(Image.new("RGB", (10, 10), "red"))
    crop, _ = anyres.slots(10, 10, spec)
    assert len(anyres.crops(pixels, spec)) == int(crop.max()) + 1 == 2


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"canvases": ()}, "anyres needs some"),
        ({"canvases": ((4, 6),)}, r"canvas \(4, 6\) is not whole crops"),
        ({"fit": "pad"}, "others take none"),
        ({"positions": "grid"}, "no common grid"),
        ({"size": None}, "native takes no size"),
    ],
)
def test_specs_that_make_no_sense(options, says):
    with pytest.raises(ValueError, match=says):
        ImageSpec(**{"size": (4, 4), "cell": 2, "fit": "anyres", "canvases": ((4, 8),), **options})
