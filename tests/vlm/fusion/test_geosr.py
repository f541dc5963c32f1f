"""Geometry-Unleashing Masking: its rate, its scope, what it leaves; and none of it in evaluation."""

from __future__ import annotations

import pytest
import torch

from gnomon.vlm.fusion.gated import Gated
from gnomon.vlm.fusion.geosr import GeoSR
from gnomon.vlm.layout import Features


def many(samples: int, tokens: int, views: int = 1) -> dict[str, Features]:
    """Samples of some views each, nothing in them."""
    images = samples * views
    where = torch.stack([torch.zeros(images), torch.arange(images) // views, torch.arange(images) % views], 1).long()
    empty = torch.zeros(images, tokens, 1)
    features = [(1, tokens)] * images
    return {"vision": Features(empty, features), "geometry": Features(empty, features, where=where)}


def test_rate_is_beta_times_gamma():
    torch.manual_seed(0)
    given = many(20_000, 40)
    gone = ~GeoSR(beta=0.5, gamma=0.8).kept(given)
    assert float(gone.float().mean()) == pytest.approx(0.40, abs=0.01)
    masked = gone.any(1)
    assert float(masked.float().mean()) == pytest.approx(0.5, abs=0.01)
    assert float(gone[masked].float().mean()) == pytest.approx(0.8, abs=0.01)


def test_all_views_of_a_sample_share_the_draw():
    torch.manual_seed(0)
    gone = ~GeoSR(beta=0.5, gamma=0.9).kept(many(200, 30, views=3))
    masked = gone.any(1).view(200, 3)
    assert bool((masked == masked[:, :1]).all()) and 60 < int(masked[:, 0].sum()) < 140


def test_one_token_of_a_sample_is_kept_at_least():
    torch.manual_seed(0)
    kept = GeoSR(beta=1.0, gamma=1.0).kept(many(500, 4, views=2)).view(500, 8)
    assert bool((kept.sum(1) == 1).all())
    # and it is any of them
    assert bool((kept.sum(0) > 30).all())


def test_padding_is_not_what_is_kept():
    given = many(50, 6)
    given["vision"].grid = [(1, 2)] * 50
    assert bool(GeoSR(beta=1.0, gamma=1.0).kept(given)[:, :2].any(1).all())


def test_a_masked_token_is_nought_to_norm_and_gate(parts, ready):
    """With gamma 1 all tokens but one are what the gate makes of zeros."""
    fusion, given = ready(GeoSR(beta=1.0, gamma=1.0)), parts(1)
    blank = {**given, "vision": Features(torch.zeros(1, 6, 8), [(2, 3)])}
    expected = fusion(blank).tokens
    found = fusion.train()(given).tokens
    assert int((found != expected).any(-1).sum()) == 1


def test_evaluation_is_the_plain_gate(parts, ready):
    masking, plain, given = ready(GeoSR(beta=1.0, gamma=1.0)), ready(Gated()), parts()
    assert torch.equal(masking(given).tokens, plain(given).tokens)


def test_size_is_the_published_one(counted):
    assert counted(GeoSR(), without="merger", vision=3584, geometry=2048) == 25_708_032


def test_shares_are_checked():
    with pytest.raises(ValueError, match=r"gamma 1.2 is not in \[0, 1\]"):
        GeoSR(gamma=1.2)
