"""UniformGrid: strides where the budget is one, evenly spaced cells elsewhere."""

import pytest
import torch

from gnomon.vlm.reduction.base import ReduceContext
from gnomon.vlm.reduction.uniform_grid import UniformGrid


def kept(height: int, width: int, ratio: float, grid: bool = True) -> list[int]:
    cell = torch.cartesian_prod(torch.arange(height), torch.arange(width))[None]
    feats = torch.zeros(1, height * width, 2)
    ctx = ReduceContext(feats, ["a"], cell, cell[..., 0], grid=(height, width) if grid else None)
    return UniformGrid(ratio).plan(ctx).index[0, :, 0].tolist()


@pytest.mark.parametrize(
    "height, width, ratio, expected",
    [
        (4, 4, 0.25, [0, 2, 8, 10]),
        (3, 5, 0.4, [0, 2, 4, 10, 12, 14]),
        # no stride leaves 3 of 16: (i + 1/2) 16/3 is 2.67, 8 and 13.33
        (4, 4, 3 / 16, [2, 8, 13]),
        (4, 4, 1 / 16, [0]),
        (1, 4, 0.5, [0, 2]),
        (2, 2, 1.0, [0, 1, 2, 3]),
    ],
)
def test_cells(height: int, width: int, ratio: float, expected: list[int]):
    assert kept(height, width, ratio) == expected


def test_a_thinned_out_image_is_spaced_evenly():
    assert kept(4, 4, 0.25, grid=False) == [2, 6, 10, 14]
