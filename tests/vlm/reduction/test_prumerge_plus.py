"""PruMerge+: which cells join the outliers, for ratios of the original's arithmetic worked out by hand."""

from __future__ import annotations

import pytest
import torch

from gnomon.vlm.reduction.base import ReduceContext
from gnomon.vlm.reduction.prumerge_plus import PruMergePlus


def context(length: int, high: list[list[int]]) -> ReduceContext:
    """Images whose listed tokens are outliers, the first one the highest."""
    torch.manual_seed(0)
    scores = torch.full((len(high), length), 1e-3)
    for row, tokens in zip(scores, high):
        row[tokens] = torch.tensor([0.1 - 0.001 * i for i in range(len(tokens))])
    cell = torch.zeros(*scores.shape, 2, dtype=torch.long)
    keys, feats = torch.randn(len(high), length, 4), torch.randn(len(high), length, 6)
    return ReduceContext(feats, ["a"] * len(high), cell, cell[..., 0], wide_saliency=scores, wide_keys=keys)


def test_steps_of_the_original():
    # 61 tokens: 4 outliers make steps of int(int(61 / 4) / 3) = 5, one makes steps of 20; cell 60 is never one of them
    ctx = context(61, [[44, 10, 3, 30], [7]])
    plan = PruMergePlus(1.0, adaptive=True).plan(ctx)
    first, second = ([a for a, real in zip(*pair) if real] for pair in zip(plan.anchor.tolist(), plan.real.tolist()))
    assert first[:4] == [44, 10, 3, 30]
    assert first[4:-1] == [0, 5, 15, 20, 25, 35, 40, 45, 50, 55]
    assert second[:-1] == [7, 0, 20, 40]
    assert plan.counts.tolist() == [15, 5]


def test_the_last_token_is_the_sum_of_all_that_is_left_out():
    ctx = context(61, [[44, 10, 3, 30]])
    plan = PruMergePlus(1.0, adaptive=True, neighbours=0).plan(ctx)
    left = sorted(set(range(61)) - set(plan.anchor[0, :-1].tolist()))
    expected = (ctx.wide_saliency[0, left, None] * ctx.feats[0, left]).sum(0)
    tokens = plan.apply(ctx.feats)[0]
    torch.testing.assert_close(tokens[-1], expected)
    assert torch.equal(tokens[:-1], ctx.feats[0, plan.anchor[0, :-1]])


def test_each_takes_in_its_nearest():
    ctx = context(61, [[44]])
    plan = PruMergePlus(1.0, adaptive=True, neighbours=1).plan(ctx)
    unit = ctx.wide_keys[0] / ctx.wide_keys[0].norm(dim=1, keepdim=True)
    for token, anchor in zip(plan.apply(ctx.feats)[0, :-1], plan.anchor[0, :-1].tolist()):
        nearest = int((unit @ unit[anchor]).topk(2).indices[1])
        torch.testing.assert_close(token, ctx.feats[0, anchor] + ctx.wide_saliency[0, nearest] * ctx.feats[0, nearest])


@pytest.mark.parametrize("ratio, most", [(0.3, 19), (0.1, 7), (0.05, 4), (0.02, 2)])
def test_the_step_grows_until_the_ratio_is_kept(ratio: float, most: int):
    plan = PruMergePlus(ratio, adaptive=True).plan(context(61, [[44, 10, 3, 30], list(range(15))]))
    assert bool((plan.counts <= most).all()) and bool((plan.counts >= 2).all())
    assert plan.anchor[0, 0] == 44 and plan.anchor[1, 0] == 0


def test_no_more_tokens_than_there_were():
    # 11 of 48 make steps of int(4 / 3) = 1; every second cell is what there is room for
    plan = PruMergePlus(1.0, adaptive=True).plan(context(48, [list(range(37, 48))]))
    assert plan.anchor[0, 11:-1].tolist() == list(range(0, 37, 2))


def test_a_fixed_ratio_is_half_high_and_half_evenly_spread():
    ctx = context(40, [[0, 1, 2, 3, 4, 5]])
    anchor = PruMergePlus(12 / 40).plan(ctx).anchor[0].tolist()
    # six high, five of the 34 others at their places 3, 10, 17, 23 and 30, then the sum
    assert anchor[:6] == [0, 1, 2, 3, 4, 5]
    assert anchor[6:11] == [9, 16, 23, 29, 36]
    assert len(anchor) == 12 and anchor[11] not in anchor[:11]
