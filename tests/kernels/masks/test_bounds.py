"""What is said of whole blocks is true of their pairs, and leaves little open of the patterns that there are."""

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from gnomon.kernels.mask import CAUSAL, Expr, by_head
from gnomon.kernels.masks import atoms
from gnomon.kernels.masks.blocks import block_lists, pairs_of
from gnomon.kernels.masks.bounds import Range, bounds
from gnomon.kernels.masks.grid import windows
from gnomon.kernels.masks.tokens import Tokens
from gnomon.kernels.sparse import power, radial
from gnomon.kernels.sparse.base import tile_order

ARITHMETIC = {
    "sum": lambda x, y: x + y,
    "difference": lambda x, y: x - y,
    "from a number": lambda x, y: x - (y * -1 + 3),
    "product": lambda x, y: x * y,
    "floor": lambda x, y: torch.div(x + y, 3, rounding_mode="floor"),
    "whole": lambda x, y: (x - y) // 2,
    "remainder": lambda x, y: (x - y) % 4,
    "size": lambda x, y: (x - y).abs(),
    "less": lambda x, y: torch.minimum(x, y),
    "cut": lambda x, y: (x + y).clamp(-1, 3),
    "cut below": lambda x, y: (x + y).clamp(min=0),
    "bits": lambda x, y: x & y,
    "counted": lambda x, y: x + (y < 2).long(),
    "at most": lambda x, y: x <= y,
    "below": lambda x, y: x < y,
    "at least": lambda x, y: x >= y,
    "above": lambda x, y: x > 1,
    "equal": lambda x, y: x == y,
    "unequal": lambda x, y: x != y,
    "equal a number": lambda x, y: x * y == 4,
    "and": lambda x, y: (x < y) & (y < 3),
    "or": lambda x, y: (x < y) | (y < x),
    "not": lambda x, y: ~(x == y),
}


@pytest.mark.parametrize("name", ARITHMETIC)
def test_a_range_holds_what_its_numbers_give(name):
    """For all ranges within -4..4: against every pair of numbers; and exact where both are one number."""
    of = ARITHMETIC[name]
    ends = [(low, high) for low in range(-4, 5) for high in range(low, 5)]
    for a in ends[::2]:
        for b in ends[::3]:
            x, y = (torch.arange(low, high + 1) for low, high in (a, b))
            every = of(x[:, None], y[None])
            found = of(*(Range(*torch.tensor(each)) for each in (a, b)))
            least, most = (every.all(), every.any()) if every.dtype == torch.bool else (every.min(), every.max())
            assert found.low <= least and most <= found.high, (a, b)
            if every.numel() == 1:
                assert found.low == every and found.high == every, (a, b)


def test_a_field_equals_itself():
    x = Range(torch.tensor(1), torch.tensor(5))
    assert bool((x == x).low) and not bool((x == Range(x.low, x.high)).low)


def test_tensors_and_ranges_mix():
    x = Range(torch.tensor([1, 4]), torch.tensor([2, 9]))
    limit = torch.tensor([3, 3])
    for found in (x < limit, limit > x, (limit == 3) & (x < limit), (x < limit) | (limit != 3)):
        assert found.low.tolist() == [True, False] and found.high.tolist() == [True, False]


@dataclass(frozen=True)
class Odd(Expr):
    """A rule by an operation that ranges do not know."""

    near: Callable[[Tensor, Tensor], Tensor]

    def allow(self, at):
        return self.near(at.q("p"), at.k("p"))


NEAR = torch.rand(50, 50, generator=torch.manual_seed(0)) < 0.5
UNKNOWN = {
    "a power": lambda q, k: (q - k).pow(2) < 30,
    "a power of python's": lambda q, k: (q - k) ** 2 < 30,
    "a choice": lambda q, k: torch.where(q > 20, k, q) < 12,
    "a table": lambda q, k: NEAR[q, k],
    "a table by one side": lambda q, k: NEAR[0][k] & (q > 3),
    "a branch": lambda q, k: (q < k) if q.sum() > 0 else (q > k),
}


@pytest.mark.parametrize("near", UNKNOWN.values(), ids=UNKNOWN)
def test_of_an_unknown_operation_the_pairs_are_asked(near):
    bound = (CAUSAL & Odd(near)).on(Tokens.line(50))
    every, some = bounds(bound, 1, 8, 8)
    # causality is known all the same
    assert not every.any() and torch.equal(some[0, 0], torch.ones(7, 7).tril().bool())
    torch.testing.assert_close(block_lists(bound, block_q=8, block_k=8).densify(bound, 1), bound.dense())


def video():
    tokens = Tokens.grid(32, 8, 16)
    return tokens.having(place=tokens["y"] * 16 + tokens["x"])


def image():
    tokens = Tokens.grid(64, 64)
    return tokens.take(tile_order(tokens))


PATTERNS = {
    "causal": (CAUSAL, Tokens.line(4096)),
    "window": (CAUSAL & (atoms.recent(512) | atoms.sink(4)), Tokens.line(4096)),
    "power": (power.rule(block=128) & CAUSAL, Tokens.line(4096)),
    "documents": (CAUSAL & atoms.same("item"), Tokens.line(4096).having(item=torch.arange(4096) // 100)),
    "ranking": (
        CAUSAL & (atoms.same("item") | atoms.k_is("item", 0) | atoms.q_is("item", 40)),
        Tokens.line(4096).having(item=torch.arange(4096) // 100),
    ),
    "radial": (radial.rule(32, 128), video()),
    "neighbourhood": (windows((13, 13)), image()),
    "strided": (windows((16, 16), stride=(8, 8)), image()),
    "disc": (atoms.disc(16), image()),
    "axial": (atoms.equal("y"), Tokens.grid(64, 64)),
    "columns": (CAUSAL & (atoms.columns(torch.tensor([3, 1700])) | atoms.recent(256)), Tokens.line(4096)),
    "packed": (CAUSAL, Tokens.packed(torch.tensor([0, 1000, 1001, 3000, 4096]))),
    "heads": (by_head({(0,): CAUSAL}, CAUSAL & atoms.recent(100)), Tokens.line(4096)),
}


@pytest.mark.parametrize(("rule", "tokens"), PATTERNS.values(), ids=PATTERNS)
def test_little_is_left_open(rule, tokens):
    """As many blocks again as are partial, at the most; what is said of the others is true."""
    bound = rule.on(tokens)
    every, some = bounds(bound, 2, 64, 64)
    lists = block_lists(bound, heads=2)
    assert int((some & ~every).sum()) <= 2 * max(int(lists.partial_count.sum()), 1)
    shown = torch.zeros_like(every), torch.zeros_like(every)
    for blocks, pairs in pairs_of(bound, 2, torch.ones_like(every[0, 0]).nonzero(), (64, 64)):
        m, n = blocks.T
        shown[0][:, :, m, n], shown[1][:, :, m, n] = pairs.flatten(3).all(3), pairs.flatten(3).any(3)
    assert not (every & ~shown[0]).any() and not (shown[1] & ~some).any()
