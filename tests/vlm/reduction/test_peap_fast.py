"""PEAP-Fast: what is blank, that something remains, and that blank cells are never seen."""

import pytest
import torch
from torch import Tensor

from gnomon.vlm.connectors.pixel_shuffle import PixelShuffle
from gnomon.vlm.encoders.timm import Timm
from gnomon.vlm.reduction.base import ReduceContext
from gnomon.vlm.reduction.peap_fast import PEAPFast


def noise(height: int = 32, width: int = 32) -> Tensor:
    return torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def kept(images: list[Tensor], grid: tuple[int, int], reducer: PEAPFast) -> list[list[int]]:
    cell = torch.cartesian_prod(*[torch.arange(side) for side in grid]).expand(len(images), -1, -1)
    feats, pixels = torch.zeros(*cell.shape[:2], 1), torch.stack(images).float() / 255
    plan = reducer.plan(ReduceContext(feats, ["a"] * len(images), cell, cell[..., 0], grid=grid, pixels=pixels))
    return [row[:count].tolist() for row, count in zip(plan.index[..., 0], plan.counts.tolist())]


def test_noise_stays_and_the_white_half_leaves():
    half = noise()
    half[:, :, 16:] = 255
    # cells of a grid that is no square
    assert kept([noise(), half], (2, 4), PEAPFast()) == [list(range(8)), [0, 1, 4, 5]]


def test_blank_is_judged_colour_by_colour():
    page = torch.full((3, 16, 16), 200, dtype=torch.uint8)
    # one colour is as blank as white, and a little noise is, too
    page[0, :8, :8] = 10
    page[1, 0, 8], page[1, 0, 9] = 199, 201
    page[2, 8, 0] = 203
    assert kept([page], (2, 2), PEAPFast()) == [[2]]
    assert kept([page], (2, 2), PEAPFast(levels=0)) == [[1, 2]]


def test_at_least_one_cell_remains_and_at_least_the_share():
    white = torch.full((3, 32, 32), 255, dtype=torch.uint8)
    grey = white.clone()
    grey[:, 20, 20] = 254
    assert kept([white, grey], (4, 4), PEAPFast()) == [[0], [10]]
    assert kept([grey], (4, 4), PEAPFast(0.25)) == [[0, 1, 2, 10]]


@torch.no_grad()
def test_what_is_in_a_blank_cells_place_does_not_matter(tiny):
    """The encoder never sees blank cells: their colour changes nothing, inside; behind it, it does."""
    page = noise()
    page[:, 16:] = 255
    other = page.clone()
    other[:, 16:] = 0
    for inside, same in ((True, True), (False, False)):
        model = tiny(reducers=[PEAPFast(inside=inside)])
        first, second = (
            model.connect(model.see([p])[0], ["a"], torch.zeros(1, dtype=torch.long)).tokens for p in (page, other)
        )
        assert first.shape[1] == 8 and torch.equal(first, second) == same


@torch.no_grad()
def test_a_connector_that_merges_tests_the_merged_cell(tiny):
    page = torch.full((3, 32, 32), 255, dtype=torch.uint8)
    # one of the four 8-pixel cells of the last 16-pixel one
    page[:, 24:, 16:24] = noise(8, 8)
    model = tiny(connector=PixelShuffle(2), reducers=[PEAPFast()])
    whole = tiny(connector=PixelShuffle(2))
    found = model.connect(model.see([page])[0], ["a"], torch.zeros(1, dtype=torch.long))
    assert found.plan.anchor.tolist() == [[3]]
    torch.testing.assert_close(found.tokens, whole.encode([page]).tokens[:, 3:])


@torch.no_grad()
def test_convolutions_see_everything_and_the_tokens_leave_behind_them(tiny):
    page = noise(64, 64)
    page[:, :32] = 255
    network = Timm("resnet18", layer=3).eval()
    model, whole = (
        tiny(encoder=network, image_size=(64, 64), reducers=[PEAPFast()]),
        tiny(encoder=network, image_size=(64, 64)),
    )
    found = model.connect(model.see([page])[0], ["a"], torch.zeros(1, dtype=torch.long))
    # 4 x 4 cells, the upper half of them blank
    torch.testing.assert_close(found.tokens, whole.encode([page]).tokens[:, 8:])


def test_levels_out_of_range():
    with pytest.raises(ValueError, match="300 grey levels"):
        PEAPFast(levels=300)
