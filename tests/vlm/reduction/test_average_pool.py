"""AveragePool: torch's own adaptive pooling, the sheet's sixteen numbers, positions in the middle, and both sides."""

import pytest
import torch
from torch.nn import functional as F

from gnomon.vlm.layout import Kind, TokenLayout
from gnomon.vlm.reduction.average_pool import AveragePool, shape
from gnomon.vlm.reduction.base import ReduceContext, Stage
from gnomon.vlm.rewrite import Placed, rewrite


def context(feats: torch.Tensor, grid: tuple[int, int]) -> ReduceContext:
    cell = torch.cartesian_prod(*[torch.arange(side) for side in grid]).expand(len(feats), -1, -1)
    return ReduceContext(feats, ["a"] * len(feats), cell, cell[..., 0], grid=grid)


def test_sixteen_numbers():
    feats = torch.arange(16.0).view(1, 16, 1)
    plan = AveragePool(0.25).plan(context(feats, (4, 4)))
    assert plan.apply(feats).flatten().tolist() == [2.5, 4.5, 10.5, 12.5]
    middles = plan.average(context(feats, (4, 4)).cell.float())
    assert middles[0].tolist() == [
        [0.5, 0.5],
        [0.5, 2.5],
        [2.5, 0.5],
        [2.5, 2.5],
    ]


@pytest.mark.parametrize(
    "height, width, ratio", [(24, 24, 0.11), (7, 9, 0.4), (5, 3, 0.9), (1, 8, 0.3), (27, 27, 0.25)]
)
def test_torchs_own_pooling(height: int, width: int, ratio: float):
    feats = torch.randn(2, height * width, 3, generator=torch.Generator().manual_seed(0))
    reducer = AveragePool(ratio)
    size = shape(height, width, reducer.budget(height * width))
    theirs = F.adaptive_avg_pool2d(feats.transpose(1, 2).unflatten(2, (height, width)), size).flatten(2).transpose(1, 2)
    torch.testing.assert_close(reducer.plan(context(feats, (height, width))).apply(feats), theirs)


@pytest.mark.parametrize(
    "height, width, budget, expected",
    [
        (24, 24, 288, (16, 18)),
        (24, 24, 144, (12, 12)),
        (24, 24, 64, (8, 8)),
        (24, 24, 59, (7, 8)),
        (1, 50, 10, (1, 10)),
        (50, 1, 10, (10, 1)),
        (6, 6, 2, (1, 2)),
        (9, 9, 1, (1, 1)),
        (3, 4, 12, (3, 4)),
    ],
)
def test_the_grid_is_the_largest_of_its_kind(height: int, width: int, budget: int, expected: tuple[int, int]):
    assert shape(height, width, budget) == expected


@pytest.mark.parametrize("axes", [1, 3])
def test_ids_are_those_of_the_middle(axes: int):
    layout = TokenLayout.text(1, 18)
    layout.kind[:, 1:17], layout.image[:, 1:17] = Kind.IMAGE, 0
    layout.cell[0, 1:17] = torch.cartesian_prod(torch.arange(4), torch.arange(4))
    if axes == 3:
        cells = F.pad(layout.cell[0] * 2, (1, 0)).T.clamp(min=0)
        layout.position = cells[:, None].contiguous()
    plan = AveragePool(0.25).plan(context(torch.zeros(1, 16, 1), (4, 4)))
    new = rewrite(layout, [Placed(torch.arange(1, 17)[None], plan)], "centroid").layout
    if axes == 3:
        # rows and columns 0, 2, 4, 6: the middles of pairs
        assert new.position[1:, 0, 1:5].tolist() == [[1, 1, 5, 5], [1, 5, 1, 5]]
    else:
        # ids 1 to 16; the middle of 1, 2, 5 and 6 is 3.5, rounded to the even neighbour
        assert new.position[0].tolist() == [0, 4, 6, 12, 14, 17]


@torch.no_grad()
def test_before_and_after_the_connector_are_two_methods(tiny):
    model, image = tiny(), torch.randint(0, 256, (3, 32, 32), dtype=torch.uint8)
    seen = model.see([image])[0]
    cells = seen.features.tokens[0].view(2, 2, 2, 2, -1).mean((1, 3)).flatten(0, 1)
    found = {}
    for where in ("before", "after"):
        model.reducers = [AveragePool(0.25, where=where)]
        found[where] = model.connect(seen, ["a"], torch.zeros(1, dtype=torch.long)).tokens[0]
    model.reducers = []
    whole = model.connect(seen).tokens[0].view(2, 2, 2, 2, -1).mean((1, 3)).flatten(0, 1)
    torch.testing.assert_close(found["after"], whole)
    torch.testing.assert_close(found["before"], model.connector.layers(cells))
    assert not torch.allclose(found["before"], found["after"], atol=1e-4)
    assert AveragePool(where="before").stage is Stage.POST_ENCODER


def test_another_side_is_refused():
    with pytest.raises(ValueError, match="where 'inside'"):
        AveragePool(where="inside")
