"""VLM-3R's transformer variant: its size, and its two sums."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from gnomon.vlm.fusion.transformer import Transformer


@pytest.mark.parametrize(("geometry", "size"), [(768, 19.0e6), (2048, 22.0e6)])
def test_size_is_the_published_one(counted, geometry, size):
    assert counted(Transformer(), vision=1152, geometry=geometry) == pytest.approx(size, abs=0.06e6)


def test_rule(parts, ready):
    fusion, given = ready(Transformer(heads=2)), parts()
    v, g = given["vision"].tokens, given["geometry"]
    seen = F.layer_norm(torch.cat([g.camera[:, :1], g.tokens], 1), (5,))
    asked, key, value = fusion.query(F.layer_norm(v, (8,))), fusion.key(seen), fusion.value(seen)
    a = v + fusion.attention(asked, key, value)
    norm, first, _, second = fusion.feed
    expected = a + second(F.relu(first(norm(a))))
    torch.testing.assert_close(fusion(given).tokens, expected, atol=1e-5, rtol=1e-4)
    assert first.out_features == 32
