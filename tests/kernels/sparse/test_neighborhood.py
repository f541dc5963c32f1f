"""Generalized neighborhood against the golden rows and an index rule written out in plain Python."""

import itertools

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from gnomon.kernels.mask import EVERYTHING
from gnomon.kernels.masks.blocks import block_lists
from gnomon.kernels.masks.tokens import Tokens
from gnomon.kernels.op import recording
from gnomon.kernels.sparse.base import tile_order
from gnomon.kernels.sparse.neighborhood import neighborhood, rule

GOLDEN = {
    "odd": (8, {"window": (3,)}, "0-2 0-2 1-3 2-4 3-5 4-6 5-7 5-7"),
    "even": (8, {"window": (4,)}, "0-3 0-3 0-3 1-4 2-5 3-6 4-7 4-7"),
    "stride": (8, {"window": (4,), "stride": 2}, "0-3 0-3 1-4 1-4 3-6 3-6 4-7 4-7"),
    "causal": (8, {"window": (4,), "stride": 2, "causal": True}, "0-0 0-1 0-2 0-3 2-4 2-5 4-6 4-7"),
    "blocks": (10, {"window": (4,), "stride": 4}, "0-3 0-3 0-3 0-3 4-7 4-7 4-7 4-7 6-9 6-9"),
}
GRIDS = {
    "image": ((6, 7), {"window": (3, 4), "stride": (2, 3)}),
    "causal": ((5, 6), {"window": (3, 2), "causal": (True, False)}),
    "dilated": ((7, 9), {"window": (3, 2), "dilation": (2, 4), "stride": (3, 1)}),
    "blocked": ((6, 8), {"window": (3, 2), "stride": (3, 2), "dilation": (1, 2)}),
    "blocked axis": ((6, 8), {"window": (2, 3), "stride": (2, 1)}),
    "video": ((4, 3, 6), {"window": (2, 3, 3), "causal": (True, False, False), "dilation": (1, 1, 2)}),
}

# Extents, window and stride on every axis, and the speed-up that the simulator of the paper's method bounds it by
SPEED = [
    ((1024,), 256, 1, 3.37), ((1024,), 256, 64, 3.37), ((1024,), 256, 256, 4.0),
    ((64, 64), 16, 1, 8.46), ((64, 64), 16, 8, 8.46), ((64, 64), 16, 16, 16.0),
    ((64, 64), 24, 1, 3.54), ((64, 64), 24, 2, 3.54), ((64, 64), 24, 4, 3.54),
    ((64, 64), 24, 8, 7.11), ((64, 64), 24, 16, 5.22),
]  # fmt: skip


def visible(i: int, j: int, length: int, w: int, s: int, d: int, causal: bool) -> bool:
    """One axis, as the definition of the method says it."""
    if i % d != j % d:
        return False
    mine, other, own = i // d, j // d, length // d + (i % d < length % d)
    if causal:
        last = min(mine // s * s + s - 1, own - 1)
        return max(last - w + 1, 0) <= other <= mine
    left, right = w // 2, w // 2 + w % 2 - 1
    leader = min(mine // s * s + s // 2, own - 1)
    start = max(leader - left, 0) + (own - right - leader - 1 if leader + right >= own else 0)
    return start <= other < start + w


@pytest.mark.parametrize("length, options, rows", GOLDEN.values(), ids=GOLDEN)
def test_golden_rows(seen, length, options, rows):
    shown = seen(neighborhood, length, grid=(length,), **options)
    ends = [f"{int(row.nonzero().min())}-{int(row.nonzero().max())}" for row in shown]
    assert " ".join(ends) == rows


def test_golden_dilation(seen):
    shown = seen(neighborhood, 8, grid=(8,), window=(3,), dilation=2)
    assert shown[2].nonzero().flatten().tolist() == [0, 2, 4] and shown[7].nonzero().flatten().tolist() == [3, 5, 7]


@pytest.mark.parametrize("impl", ["reference", "tile", "auto"])
@pytest.mark.parametrize("grid, options", GRIDS.values(), ids=GRIDS)
def test_every_axis_follows_the_rule(seen, grid, options, impl):
    def each(name, default):
        value = options.get(name, default)
        return value if isinstance(value, tuple) else (value,) * len(grid)

    axes = list(zip(grid, options["window"], each("stride", 1), each("dilation", 1), each("causal", False)))
    places = list(itertools.product(*(range(n) for n in grid)))
    expected = [[all(visible(i, j, *axis) for i, j, axis in zip(a, b, axes)) for b in places] for a in places]
    shown = seen(neighborhood, len(places), grid=grid, impl=impl, **options)
    assert torch.equal(shown, torch.tensor(expected))
    if not any(each("causal", False)):
        assert bool((shown.sum(-1) == torch.tensor(options["window"]).prod()).all())


def test_a_window_as_large_as_the_image_is_full_attention():
    q, k, v = (torch.randn(2, 20, 3, 8, dtype=torch.float64) for _ in range(3))
    o, _ = neighborhood(q, k, v, grid=(4, 5), window=(4, 5), stride=2)
    whole = scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v))).transpose(1, 2)
    torch.testing.assert_close(o, whole)


def test_blocked_windows_are_a_batch_of_dense_attentions():
    q, k, v = (torch.randn(1, 48, 2, 8, dtype=torch.float64) for _ in range(3))
    with recording() as choices:
        o, _ = neighborhood(q, k, v, grid=(6, 8), window=(3, 4), stride=(3, 4))
    assert choices[0].used == "group"
    cut = [x.reshape(2, 3, 2, 4, 2, 8).permute(0, 2, 4, 1, 3, 5).reshape(4, 2, 12, 8) for x in (q, k, v)]
    whole = scaled_dot_product_attention(*cut).reshape(2, 2, 2, 3, 4, 8).permute(0, 3, 1, 4, 2, 5).reshape(1, 48, 2, 8)
    torch.testing.assert_close(o, whole)


def test_dilation_is_the_neighborhood_on_each_residue():
    q, k, v = (torch.randn(1, 21, 2, 4, dtype=torch.float64) for _ in range(3))
    o, _ = neighborhood(q, k, v, grid=(21,), window=(3,), dilation=4)
    for r in range(4):
        part = [x[:, r::4] for x in (q, k, v)]
        torch.testing.assert_close(o[:, r::4], neighborhood(*part, grid=(part[0].shape[1],), window=(3,))[0])


@pytest.mark.parametrize("tokens", [Tokens.grid(8, 8), Tokens.join([Tokens.grid(4, 4), Tokens.grid(6, 8, item=1)])])
def test_tokens_of_the_mask_know_the_grid_better(seen, tokens):
    """On its own grid (4, 4) the window is everything, on theirs it is not."""
    how = {"window": (4, 4), "mask": EVERYTHING.on(tokens)}
    shown = seen(neighborhood, 64, grid=(4, 4), **how)
    assert not bool(shown.all()) and torch.equal(shown, seen(neighborhood, 64, **how))


def test_wrong_windows_are_refused():
    q = torch.randn(1, 12, 1, 4)
    for window in ((3,), (1, 3, 3)):
        with pytest.raises(
            ValueError, match=r"^neighborhood: window .* on grid \(3, 4\); give as many extents of both$"
        ):
            neighborhood(q, q, q, grid=(3, 4), window=window)
    for options in ({"window": (5, 3)}, {"window": (3, 3), "stride": 4}, {"window": (3, 3), "dilation": (1, 2)}):
        with pytest.raises(ValueError, match=r"mask: window|mask: a window"):
            neighborhood(q, q, q, grid=(4, 3), **options)


@pytest.mark.parametrize("extents, window, stride, bound", SPEED)
def test_blocks_that_are_read_are_those_of_the_simulator(extents, window, stride, bound):
    """With tiles at fixed places, of 64 tokens on a line and of 8 x 8 on an image."""
    tokens = Tokens.grid(*extents)
    order = tile_order(tokens)
    tokens = tokens if order is None else tokens.take(order)
    axes = len(extents)
    lists = block_lists(rule(extents, (window,) * axes, stride=stride).on(tokens), block_q=64, block_k=64)
    assert 1 / lists.density == pytest.approx(bound, abs=0.005)
    # what is gained is all that windows can gain where, and only where, no block is read for a part of it
    whole = torch.tensor(extents).prod() / window**axes
    assert (not lists.partial_count.any()) == (1 / lists.density == pytest.approx(float(whole)))
