"""SVE-Math's router: weights that are each their own, levels on the visual grid, and a shut router."""

from __future__ import annotations

import pytest
import torch

from gnomon.vlm.fusion.sve_math import SVEMath


@pytest.fixture
def fusion(ready):
    return ready(SVEMath([0, 1, 3]), geometry=4)


def test_weights_are_independent_shares(fusion, parts):
    given = parts(geometry=12)
    levels = fusion.aligned(given).chunk(3, -1)
    before = torch.cat(fusion.weights(given["vision"], levels), 1)
    assert before.shape == (2, 3) and bool(((before > 0) & (before < 1)).all())
    # one level's content moves its own weight alone; their sum is free
    given["geometry"].tokens[..., 4:8] *= -3
    after = torch.cat(fusion.weights(given["vision"], fusion.aligned(given).chunk(3, -1)), 1)
    assert (after != before).any(0).tolist() == [False, True, False]
    assert not torch.allclose(before.sum(1), torch.ones(2))


def test_levels_are_brought_to_the_visual_grid_by_the_nearest_cell(fusion, parts):
    given = parts(1, merge=2, geometry=12)
    # token (1, 2) lies over the cell (2, 4) of the fine grid
    assert torch.equal(fusion.aligned(given)[0, 5], given["geometry"].tokens[0, 2 * 6 + 4])


def test_a_shut_router_hears_nothing_of_geometry(fusion, parts):
    given = parts(geometry=12)
    other = {**given, "geometry": parts(geometry=12)["geometry"]}
    other["geometry"].tokens = other["geometry"].tokens.flip(1) * 2
    assert not torch.allclose(fusion(given).tokens, fusion(other).tokens)
    with torch.no_grad():
        fusion.router[2].bias.fill_(-200)
    assert torch.equal(fusion(given).tokens, fusion(other).tokens)


def test_channels_stand_side_by_side(fusion, parts):
    """Without the levels' channels, what is left is a network of the visual tokens alone."""
    given = parts(geometry=12)
    first, act, second = fusion.join
    assert first.in_features == 4 * 8
    with torch.no_grad():
        first.weight[:, 8:].zero_()
    expected = second(act(given["vision"].tokens @ first.weight[:, :8].T + first.bias))
    torch.testing.assert_close(fusion(given).tokens, expected, atol=1e-6, rtol=1e-4)
