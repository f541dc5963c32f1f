"""VLM-3R's cross attention: its size, no places on keys, and what is left where there are none."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from gnomon.vlm.fusion.cross import Cross


@pytest.mark.parametrize(("geometry", "size"), [(768, 9_747_456), (2048, 12_699_136)])
def test_size_is_the_published_one(counted, geometry, size):
    assert counted(Cross(), vision=1152, geometry=geometry) == size


def test_rule_by_hand(parts, ready):
    """One head, one image; the camera's token is the first key, registers are none."""
    fusion, given = ready(Cross(heads=1)), parts(1)
    v, g = given["vision"].tokens[0], given["geometry"]
    seen = F.layer_norm(torch.cat([g.camera[0, :1], g.tokens[0]]), (5,))
    inside = fusion.attention
    query = inside.query(fusion.query(F.layer_norm(v, (8,))))
    key, value = inside.key(fusion.key(seen)), inside.value(fusion.value(seen))
    said = (query @ key.T / 8**0.5).softmax(-1) @ value
    expected = v + F.layer_norm(fusion.out(inside.out(said)), (8,))
    torch.testing.assert_close(fusion(given).tokens[0], expected, atol=1e-5, rtol=1e-4)


def test_keys_have_no_places(parts, ready):
    fusion, given = ready(Cross(heads=2)), parts()
    before = fusion(given).tokens
    given["geometry"].tokens = given["geometry"].tokens[:, [3, 1, 5, 0, 2, 4]]
    torch.testing.assert_close(fusion(given).tokens, before, atol=1e-5, rtol=1e-4)


def test_places_by_hand(parts, ready):
    """2 x 3 visual tokens over 4 x 6 patches: a token stands in the middle of its four, the camera nowhere."""

    def waves(row: float, column: float) -> list[float]:
        angles = [axis / 10000 ** (k / 2) for axis in (row, column) for k in range(2)]
        return [f(a) for pair in (angles[:2], angles[2:]) for f in (math.sin, math.cos) for a in pair]

    fusion, given = ready(Cross(heads=1, places=True)), parts(1, merge=2)
    v, g = given["vision"].tokens[0], given["geometry"]
    asked = torch.tensor([waves(2 * row + 0.5, 2 * column + 0.5) for row in range(2) for column in range(3)])
    known = torch.tensor([[0.0] * 8] + [waves(row, column) for row in range(4) for column in range(6)])
    seen = F.layer_norm(torch.cat([g.camera[0, :1], g.tokens[0]]), (5,))
    inside = fusion.attention
    query = inside.query(fusion.query(F.layer_norm(v, (8,))) + asked)
    key, value = inside.key(fusion.key(seen) + known), inside.value(fusion.value(seen))
    said = (query @ key.T / 8**0.5).softmax(-1) @ value
    expected = v + F.layer_norm(fusion.out(inside.out(said)), (8,))
    torch.testing.assert_close(fusion(given).tokens[0], expected, atol=1e-5, rtol=1e-4)


def test_without_any_key_tokens_stay_as_they_are(parts, ready):
    fusion, given = ready(Cross(heads=2)), parts()
    before = fusion(given).tokens
    given["geometry"].tokens[0], given["geometry"].camera[0] = torch.nan, torch.inf
    after = fusion(given).tokens
    assert torch.equal(after[0], given["vision"].tokens[0]) and torch.equal(after[1], before[1])


def test_a_key_that_is_no_number_is_not_looked_at(parts, ready):
    fusion, given = ready(Cross(heads=2)), parts(1)
    fewer = given["geometry"].tokens[:, 1:].clone()
    given["geometry"].tokens[:, 0] = torch.nan
    found = fusion(given).tokens
    given["geometry"].tokens = fewer
    torch.testing.assert_close(found, fusion(given).tokens, atol=1e-5, rtol=1e-4)


def test_heads_that_do_not_divide_name_some_that_do(ready):
    with pytest.raises(ValueError, match="18 heads do not divide width 32; use 4"):
        ready(Cross(), vision=32)
