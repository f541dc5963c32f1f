"""Random: the choice hangs on seed, sample and image alone."""

from dataclasses import replace

import torch

from gnomon.vlm.reduction.base import ReduceContext
from gnomon.vlm.reduction.random import Random


def context(names: list[str], count: int = 16) -> ReduceContext:
    cell = torch.zeros(len(names), count, 2, dtype=torch.long)
    return ReduceContext(torch.randn(len(names), count, 4), names, cell, cell[..., 0])


def test_the_same_seed_takes_the_same_set_and_another_another():
    ctx = context(["a#0", "b#0"])
    first = Random(0.5).plan(ctx).index
    assert torch.equal(first, Random(0.5).plan(replace(ctx, feats=torch.randn(2, 16, 4))).index)
    assert not torch.equal(first, Random(0.5, seed=1).plan(ctx).index)
    assert not torch.equal(first[0], first[1])


def test_every_token_is_as_likely_as_any_other():
    """2,000 draws of 4 of 16: each token's count is within five standard deviations of 500."""
    index = Random(0.25).plan(context([f"s{i}#0" for i in range(2000)])).index
    counts = torch.bincount(index.flatten(), minlength=16)
    assert bool(((counts - 500).abs() < 5 * (2000 * 0.25 * 0.75) ** 0.5).all())
