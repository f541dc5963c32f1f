"""Coordinates as an embedding: whose point a token has, and a vector for those that have none."""

from __future__ import annotations

import torch

from gnomon.vlm.fusion.coordinate_embedding import CoordinateEmbedding
from gnomon.vlm.plan import ReductionPlan


def located(given):
    """Cells of a 4 x 6 grid at (column, row, 1); the four cells under token 5 are not known."""
    h, w = given["geometry"].grid[0]
    y, x = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
    xyz = torch.stack([x, y, torch.ones_like(x)], -1).float().view(1, h * w, 3)
    known = 1 - ((y >= 2) & (x >= 4)).float().view(1, h * w)
    given["geometry"].xyz, given["geometry"].confidence = xyz, known
    return given


def test_points_and_the_vector_for_none(parts, ready):
    fusion, given = ready(CoordinateEmbedding()), located(parts(1, merge=2))
    added = fusion(given).tokens - given["vision"].tokens
    expected = fusion.embed(torch.tensor([[2.5, 0.5, 1.0], [0.5, 2.5, 1.0]]))
    torch.testing.assert_close(added[0, [1, 3]], expected, atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(added[0, 5], fusion.nowhere, atol=1e-6, rtol=1e-4)
    assert bool(fusion.nowhere.any()) and not torch.allclose(fusion.nowhere, fusion.embed(torch.zeros(3)))


def test_confidence_weighs_and_thresholds(parts, ready):
    given = located(parts(1, merge=2))
    # under token 0: (0,0) (1,0) (0,1) (1,1), of which one is sure
    given["geometry"].confidence[0, [0, 1, 6, 7]] = torch.tensor([0.0, 0.0, 0.0, 0.4])
    fusion = ready(CoordinateEmbedding())
    added = fusion(given).tokens - given["vision"].tokens
    torch.testing.assert_close(added[0, 0], fusion.embed(torch.tensor([1.0, 1.0, 1.0])), atol=1e-6, rtol=1e-4)
    strict = ready(CoordinateEmbedding(threshold=0.2))
    added = strict(given).tokens - given["vision"].tokens
    torch.testing.assert_close(added[0, 0], strict.nowhere, atol=1e-6, rtol=1e-4)


def test_a_merged_token_stands_between_its_sources_that_are_known(parts, ready):
    fusion, given = ready(CoordinateEmbedding()), located(parts(1, merge=2))
    # tokens 0 and 1; token 4 and the unknown 5; 5 alone
    plan = ReductionPlan.merge(torch.tensor([[0, 0, -1, -1, 1, 1]]), 2)
    given["vision"] = given["vision"].reduced(plan)
    added = fusion(given).tokens - given["vision"].tokens
    expected = fusion.embed(torch.tensor([[1.5, 0.5, 1.0], [2.5, 2.5, 1.0]]))
    torch.testing.assert_close(added[0], expected, atol=1e-6, rtol=1e-4)


def test_zero_adds_nothing(parts, ready):
    given = located(parts(1, merge=2))
    assert torch.equal(ready(CoordinateEmbedding(zero=True))(given).tokens, given["vision"].tokens)
