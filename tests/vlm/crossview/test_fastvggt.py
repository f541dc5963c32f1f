"""FastVGGT against its rule written out token by token."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from gnomon.vlm.crossview.fastvggt import FastVGGT
from gnomon.vlm.multiview.cross import CrossView, ViewLayout


def layout_of(grid: tuple[int, int], *, special: int, views: int) -> ViewLayout:
    return ViewLayout(grid, special, torch.ones(1, views, dtype=torch.bool))


def literally(x, q, k, v, layout: ViewLayout, *, ratio: float, protect: float) -> torch.Tensor:
    """One scene, one head: x (N,C), q, k and v (N,D)."""
    (h, w), per_view, count = layout.grid, layout.length, len(x)
    draw = torch.randint(4, (layout.views - 1, h // 2, w // 2), generator=torch.Generator().manual_seed(33)).tolist()
    targets = []
    for token in range(count):
        view, place = divmod(token, per_view)
        row, column = divmod(place - layout.special, w)
        drawn = view == 0 or place < layout.special
        if not drawn and row // 2 < h // 2 and column // 2 < w // 2:
            drawn = draw[view - 1][row // 2][column // 2] == row % 2 * 2 + column % 2
        if drawn:
            targets.append(token)
    protected = [i * (count // int(count * protect)) for i in range(int(count * protect))] if protect else []
    likeness = {}
    for token in set(range(count)) - set(targets) - set(protected):
        likeness[token] = max((F.cosine_similarity(x[token], x[t], dim=0).item(), t) for t in targets)
    merged = sorted(likeness, key=likeness.get, reverse=True)[: int(count * ratio)]
    groups = [[token] for token in likeness if token not in merged]
    groups += [[t, *(s for s in merged if likeness[s][1] == t)] for t in targets]
    groups += [[token] for token in protected]
    q, k, v = (torch.stack([part[group].mean(0) for group in groups]) for part in (q, k, v))
    o = (q @ k.T / q.shape[1] ** 0.5).softmax(-1) @ v
    # later groups overwrite earlier ones: of what is protected, its own group counts
    return torch.stack([next(o[i] for i in reversed(range(len(groups))) if t in groups[i]) for t in range(count)])


@pytest.mark.parametrize("grid", [(4, 4), (3, 5), (1, 3)], ids=str)
@pytest.mark.parametrize(("ratio", "protect"), [(0.9, 0.1), (0.2, 0.1), (0.3, 0)])
def test_the_rule(grid, ratio, protect):
    layout = layout_of(grid, special=2, views=4)
    count = 4 * layout.length
    x, q, k, v = torch.randn(4, count, 8, generator=torch.Generator().manual_seed(3))
    cross = FastVGGT(ratio, protect=protect)
    parts = (part[None, None] for part in (q, k, v))
    got = cross.attend(x[None], *parts, layer=0, layout=layout, memory=None)[0, 0]
    torch.testing.assert_close(got, literally(x, q, k, v, layout, ratio=ratio, protect=protect), atol=1e-5, rtol=1e-5)


def test_which_tokens_are_destinations():
    """Two views of one special token and 2x2 patches: all of the first view, the special token and one patch."""
    layout = layout_of((2, 2), special=1, views=2)
    drawn = int(torch.randint(4, (1, 1, 1), generator=torch.Generator().manual_seed(33)))
    x = F.one_hot(torch.arange(10), 10).float()
    sources = [token for token in range(6, 10) if token != 6 + drawn]
    # the first source resembles token 2 most, the next token 5, the last one nothing
    x[sources[0], 2], x[sources[1], 5] = 3, 1
    tokens, joins, place = FastVGGT(0.2, protect=0).plan(x, layout)
    assert tokens[: len(tokens) - 2].tolist() == [sources[2], 0, 1, 2, 3, 4, 5, 6 + drawn]
    assert tokens[-2:].tolist() == sources[:2] and joins.tolist() == [3, 6]
    assert place[sources].tolist() == [3, 6, 0] and place[:6].tolist() == [1, 2, 3, 4, 5, 6]


def test_equal_views_lose_nothing():
    """Without cells and special tokens all views merge into the first: each key counts once instead of three times."""
    layout = layout_of((1, 6), special=0, views=3)
    once = torch.randn(4, 1, 1, 6, 8, generator=torch.Generator().manual_seed(4))
    x, q, k, v = once.repeat(1, 1, 1, 3, 1)
    call = {"layer": 0, "layout": layout, "memory": None}
    assert len(FastVGGT(0.9, protect=0).plan(x[0, 0], layout)[1]) == 12
    got, dense = (cross.attend(x[0], q, k, v, **call) for cross in (FastVGGT(0.9, protect=0), CrossView()))
    torch.testing.assert_close(got, dense, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("name", ["ratio", "protect"])
def test_shares_are_shares(name):
    with pytest.raises(ValueError, match=f"{name} 1.5, a share of all tokens; give a number from 0 to 1"):
        FastVGGT(**{name: 1.5})


def test_many_that_join_one_are_still_their_mean_in_half_precision():
    """400 equal views: whatever the groups, each query finds what it finds in one view."""
    layout = layout_of((2, 3), special=1, views=400)
    once = torch.randn(4, 1, 1, 7, 8, generator=torch.Generator().manual_seed(5)).bfloat16()
    x, q, k, v = once.repeat(1, 1, 1, 400, 1)
    cross = FastVGGT(0.9)
    tokens, joins, place = cross.plan(x[0, 0], layout)
    assert torch.bincount(joins).max() > 200
    got = cross.attend(x[0], q, k, v, layer=0, layout=layout, memory=None)[0, 0]
    # the mean of equal tokens is such a token, so the merged scene is that of these, in float64
    whole = [part[0, 0].double()[tokens[: len(tokens) - len(joins)]] for part in (q, k, v)]
    wanted = F.scaled_dot_product_attention(*(part[None, None] for part in whole))[0, 0, place]
    torch.testing.assert_close(got.double(), wanted, atol=0.02, rtol=0.02)
