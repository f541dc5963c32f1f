"""Alignment: whose geometry stands beside which visual token, by tokens that say where they come from."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from gnomon.vlm.multiview.align import ALIGNMENTS, interp, merge, nearest, pool


def coded(h: int, w: int) -> torch.Tensor:
    """(1,h*w,2) row and column."""
    return torch.cartesian_prod(torch.arange(h), torch.arange(w)).float()[None]


@pytest.mark.parametrize("side", [1, 2, 3])
def test_merge_keeps_rows_and_columns(side):
    h, w = 2, 5
    found = merge(coded(h * side, w * side), (h * side, w * side), (h, w)).view(h, w, side, side, 2)
    for r in range(h):
        for c in range(w):
            for i in range(side):
                for j in range(side):
                    assert found[r, c, i, j].tolist() == [r * side + i, c * side + j]


def test_merge_is_the_order_of_patches_that_qwen_has():
    """Patch (r m + i, c m + j) is number (r w/m + c) m^2 + i m + j of a Qwen-style patchifier."""
    h, w, m = 4, 6, 2
    order = torch.empty(h * w, dtype=torch.long)
    for r in range(h // m):
        for c in range(w // m):
            for i in range(m):
                for j in range(m):
                    order[(r * (w // m) + c) * m * m + i * m + j] = (r * m + i) * w + c * m + j
    qwen = coded(h, w)[0, order].view(1, h * w // m**2, m * m * 2)
    assert torch.equal(merge(coded(h, w), (h, w), (h // m, w // m)), qwen)


@pytest.mark.parametrize("onto", [(2, 2), (4, 3), (3, 5), (8, 12), (0, 0)])
def test_merge_refuses_grids_that_are_no_multiples(onto):
    with pytest.raises(ValueError, match=f"4x6 cells cannot be merged onto {onto[0]}x{onto[1]}") as error:
        merge(coded(4, 6), (4, 6), onto)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("onto", [(3, 4), (8, 9), (4, 6)])
def test_interp_is_torchs_without_aligned_corners(onto):
    tokens = torch.randn(2, 24, 3, generator=torch.Generator().manual_seed(0))
    image = tokens.transpose(1, 2).reshape(2, 3, 4, 6)
    expected = F.interpolate(image, onto, mode="bilinear", align_corners=False).flatten(2).transpose(1, 2)
    torch.testing.assert_close(interp(tokens, (4, 6), onto), expected)


@pytest.mark.parametrize("name", ["interp", "pool", "nearest", "merge"])
def test_a_grid_onto_itself_stays_what_it_is(name):
    tokens = torch.randn(2, 24, 3, generator=torch.Generator().manual_seed(0))
    assert torch.equal(ALIGNMENTS[name](tokens, (4, 6), (4, 6)), tokens)


def test_pool_is_the_mean_for_whole_ratios():
    tokens = torch.randn(2, 24, 3, generator=torch.Generator().manual_seed(0))
    expected = F.avg_pool2d(tokens.transpose(1, 2).reshape(2, 3, 4, 6), (2, 3)).flatten(2).transpose(1, 2)
    torch.testing.assert_close(pool(tokens, (4, 6), (2, 2)), expected)


def test_pool_goes_by_centres():
    """Five columns onto two: centres .1 .3 .5 .7 .9 of the width; the one in the middle belongs to the right."""
    found = pool(torch.arange(5.0).view(1, 5, 1), (1, 5), (1, 2))
    assert found.flatten().tolist() == [0.5, 3.0]


def test_pool_takes_the_nearest_where_no_centre_lies():
    found = pool(torch.arange(2.0).view(1, 2, 1), (1, 2), (1, 6))
    assert found.flatten().tolist() == [0, 0, 0, 1, 1, 1]


def test_pool_weighs_and_yields_nothing_of_nothing():
    tokens, weight = torch.tensor([[[1.0], [5.0], [7.0], [9.0]]]), torch.tensor([[3.0, 1, 0, 0]])
    assert pool(tokens, (1, 4), (1, 2), weight).flatten().tolist() == [2.0, 0.0]


def test_nearest_is_torchs():
    tokens = coded(4, 6)
    expected = F.interpolate(tokens.transpose(1, 2).reshape(1, 2, 4, 6), (3, 4)).flatten(2).transpose(1, 2)
    assert torch.equal(nearest(tokens, (4, 6), (3, 4)), expected)


def test_pool_keeps_the_digits_of_places_under_autocast():
    places = 20 * torch.rand(1, 64, 3)
    with torch.autocast("cpu", torch.bfloat16):
        found = pool(places, (8, 8), (4, 4))
    assert torch.equal(found, pool(places, (8, 8), (4, 4)))
