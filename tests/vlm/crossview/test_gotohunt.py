"""Good Token Hunting: who is asked by whom, read from what comes back when every token's value is its own number."""

from __future__ import annotations

import math

import pytest
import torch

from gnomon.vlm.crossview.gotohunt import GoodTokenHunting, spread
from gnomon.vlm.multiview.cross import ViewLayout

# 2 special tokens and 3x4 patches
LAYOUT = ViewLayout((3, 4), 2, torch.ones(1, 4, dtype=torch.bool))
ANGLES = torch.tensor([0, 10, 150, 80.0]) * math.pi / 180
PATCHES = torch.stack([ANGLES.cos(), ANGLES.sin()], -1)[None, :, None].expand(1, 4, 12, 2)


def asked(cross: GoodTokenHunting, layer: int, layout: ViewLayout = LAYOUT) -> torch.Tensor:
    """(N,N) bool: rows ask columns."""
    count = layout.views * layout.length
    q, k, v = torch.randn(1, 1, count, 4), torch.randn(1, 1, count, 4), torch.eye(count)[None, None]
    memory = cross.begin(PATCHES, layout)
    return cross.attend(q[0], q, k, v, layer=layer, layout=layout, memory=memory)[0, 0] > 0


def test_spread():
    """From 0 degrees to 150, which is farthest; then to 80, which is farther from both than 10."""
    units = PATCHES[:, :, 0]
    everything = torch.ones(1, 4, dtype=torch.bool)
    assert spread(units, everything, 4).tolist() == [[0, 2, 3, 1]]
    without = torch.tensor([[False, True, True, True]])
    assert spread(units, without, 3).tolist() == [[1, 2, 3]]
    # 0 and 2 are there; the others come after them
    assert spread(units, torch.tensor([[True, False, True, False]]), 3)[0, :2].tolist() == [0, 2]


def test_equally_far_views_come_in_their_order():
    units = torch.eye(4)[None]
    assert spread(units, torch.ones(1, 4, dtype=torch.bool), 4).tolist() == [[0, 1, 2, 3]]


def test_two_stages():
    cross = GoodTokenHunting(2, stride=2, local=1, sample=2)
    same = torch.arange(4).repeat_interleave(14)
    assert torch.equal(asked(cross, 0), same[:, None] == same)
    # of views 0 and 2, special tokens and patches (0,0), (0,2), (2,0), (2,2)
    strided = [0, 1, 2, 4, 10, 12]
    columns = torch.zeros(56, dtype=torch.bool)
    columns[[*strided, *(28 + token for token in strided)]] = True
    assert torch.equal(asked(cross, 1), columns.expand(56, 56))
    assert torch.equal(asked(cross, 2), ((same == 0) | (same == 2)).expand(56, 56))


def test_own_view_replaces_the_last_one_chosen():
    views = asked(GoodTokenHunting(2, local=0, sample=0, own=True), 5).view(4, 14, 4, 14).any(3).any(1)
    assert [row.nonzero()[:, 0].tolist() for row in views] == [[0, 2], [0, 1], [0, 2], [0, 3]]


def test_other_views_may_come_in_any_order():
    cross, order = GoodTokenHunting(3, stride=2, local=0), [0, 3, 1, 2]
    patches = torch.randn(1, 4, 12, 8, generator=torch.Generator().manual_seed(1))
    q, k, v = torch.randn(3, 1, 2, 4, 14, 8, generator=torch.Generator().manual_seed(2))

    def through(views: list[int]) -> torch.Tensor:
        parts = [part[:, :, views].flatten(2, 3) for part in (q, k, v)]
        memory = cross.begin(patches[:, views], LAYOUT)
        return cross.attend(parts[0], *parts, layer=1, layout=LAYOUT, memory=memory).unflatten(2, (4, 14))

    torch.testing.assert_close(through(order), through([0, 1, 2, 3])[:, :, order], atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("name", ["views", "stride"])
def test_at_least_one(name):
    with pytest.raises(ValueError, match=f"{name} 0; give 1 or more"):
        GoodTokenHunting(**{name: 0})
