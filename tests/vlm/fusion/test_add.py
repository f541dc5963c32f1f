"""VG-LLM's addition: its size, its order of patches, and a start that is the plain model."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from gnomon.vlm.fusion.add import Add


def test_size_is_the_published_one(counted):
    assert counted(Add(merge=2, hidden=4096), vision=3584, geometry=2048) == 48_244_224


def test_rule_by_hand(parts, ready):
    """Each cell normed on its own, then flattened by row, column and channel."""
    fusion, given = ready(Add(merge=2)), parts(merge=2)
    g, w = given["geometry"].tokens, fusion.merger
    for row, column in ((0, 0), (1, 2)):
        cells = [g[1, (2 * row + i) * 6 + 2 * column + j] for i in range(2) for j in range(2)]
        normed = torch.cat([cell / (cell.square().mean() + 1e-6).sqrt() * w.norm.weight for cell in cells])
        hidden = F.gelu(w.layers[0].weight @ normed + w.layers[0].bias)
        expected = given["vision"].tokens[1, row * 3 + column] + w.layers[2].weight @ hidden + w.layers[2].bias
        torch.testing.assert_close(fusion(given).tokens[1, row * 3 + column], expected)


def test_zero_adds_nothing(parts, ready):
    given = parts(merge=2)
    assert torch.equal(ready(Add(merge=2, zero=True))(given).tokens, given["vision"].tokens)


def test_a_cell_of_geometry_changes_its_token_alone(parts, ready):
    fusion, given = ready(Add(merge=2)), parts(merge=2)
    before = fusion(given).tokens
    # row 3, column 1 of the fine grid lies under row 1, column 0
    given["geometry"].tokens[0, 3 * 6 + 1] += 1
    assert (fusion(given).tokens != before).any(-1).nonzero().tolist() == [[0, 3]]
