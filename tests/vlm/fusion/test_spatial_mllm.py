"""Spatial-MLLM: its size, and the order inside a vector, time innermost."""

from __future__ import annotations

import torch

from gnomon.vlm.fusion.spatial_mllm import SpatialMLLM


def test_size_is_the_published_one(counted):
    found = counted(SpatialMLLM(merge=2), vision=2048, geometry=2048)
    assert found == 302_024_704


def test_time_is_innermost(parts, ready):
    """Of row, column, channel and time: tokens that say where they come from."""
    fusion, given = ready(SpatialMLLM(merge=2), geometry=3), parts(1, merge=2, geometry=6)
    cells, grid = [], given["geometry"].grid[0]
    for row in range(grid[0]):
        for column in range(grid[1]):
            # as a survey has them: frame by frame, channels inside
            cells.append([1000 * row + 100 * column + 10 * channel + time for time in range(2) for channel in range(3)])
    given["geometry"].tokens = torch.tensor(cells).float()[None]
    found = fusion.aligned(given)[0, 4]
    expected = [
        1000 * row + 100 * column + 10 * channel + time
        for row in (2, 3)
        for column in (2, 3)
        for channel in range(3)
        for time in range(2)
    ]
    assert found.tolist() == expected


def test_the_whole_vector_is_normed(ready):
    assert ready(SpatialMLLM(merge=2)).merger.norm.normalized_shape == (2 * 2 * 2 * 5,)
