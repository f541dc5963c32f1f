"""PruMerge: the sheet's outliers, a merge worked out by hand, and images that keep different numbers."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from gnomon.vlm.reduction.base import ReduceContext, outliers
from gnomon.vlm.reduction.prumerge import PruMerge


def context(scores: Tensor, keys: Tensor, feats: Tensor) -> ReduceContext:
    cell = torch.zeros(*scores.shape, 2, dtype=torch.long)
    return ReduceContext(feats, ["a"] * len(scores), cell, cell[..., 0], wide_saliency=scores, wide_keys=keys)


SHEET = torch.tensor([[1.0, 1, 2, 2, 3, 3, 4, 20]]) / 36


def test_the_sheets_outlier():
    # Q1 = 1.75, Q3 = 3.25, so that the fence stands at 5.5
    assert outliers(SHEET).nonzero()[:, 1].tolist() == [7]
    assert outliers(torch.tensor([[1.0, 1, 2, 2, 3, 3, 5.5, 5.6]]) - 0.1).sum() == 0
    fence = torch.tensor([[1.0, 1, 2, 2, 3, 3, 4, 5.6]])
    assert outliers(fence).nonzero()[:, 1].tolist() == [7]


def test_a_merge_by_hand():
    angle = torch.tensor([0.0, 90, 80, 40, 10, 180, 30, 0]).deg2rad()
    feats = 10.0 ** torch.arange(8)[None, :, None].double()
    keys = torch.stack([angle.cos(), angle.sin()], 1)[None]
    plan = PruMerge(1.0, adaptive=True, neighbours=2).plan(context(SHEET, keys, feats))
    # token 7 (0 deg) takes in 0 (0 deg) and 4 (10 deg); the last one is the sum of all but 7
    scores = (SHEET[0] * 10.0 ** torch.arange(8)).tolist()
    expected = [1e7 + scores[0] + scores[4], sum(scores[:7])]
    assert plan.counts.tolist() == [2]
    assert plan.apply(feats)[0, :, 0].tolist() == pytest.approx(expected, rel=1e-6)
    # the last one stands where the highest of what was left out stood
    assert plan.anchor.tolist() == [[7, 6]]


def test_neighbours_may_be_kept_themselves():
    scores = torch.tensor([[0.4, 0.3, 0.01, 0.01]])
    keys, feats = torch.tensor([[[1.0, 0], [1, 0.1], [0, 1], [0, 1]]]), torch.tensor([[[1.0], [10], [100], [1000]]])
    tokens = PruMerge(0.75, neighbours=1).plan(context(scores, keys, feats)).apply(feats)[0, :, 0]
    assert tokens.tolist() == pytest.approx([1 + 0.3 * 10, 10 + 0.4 * 1, 0.01 * 1100])


def test_without_neighbours_it_is_the_highest_in_the_order_of_their_scores():
    torch.manual_seed(0)
    scores, feats = torch.rand(2, 30).softmax(1), torch.randn(2, 30, 4)
    tokens = PruMerge(0.5, neighbours=0).plan(context(scores, torch.randn(2, 30, 4), feats)).apply(feats)
    order = scores.argsort(dim=1, descending=True)
    for group in range(2):
        assert torch.equal(tokens[group, :14], feats[group, order[group, :14]])
        left = order[group, 14:]
        torch.testing.assert_close(tokens[group, 14], (scores[group, left, None] * feats[group, left]).sum(0))


def ragged() -> ReduceContext:
    """Three images with 3, 0 and 1 outliers."""
    torch.manual_seed(0)
    scores = 0.01 + 0.001 * torch.rand(3, 40)
    scores[0, [5, 9, 30]] = torch.tensor([0.1, 0.3, 0.2])
    scores[2, 17] = 0.2
    return context(scores, torch.randn(3, 40, 4), torch.randn(3, 40, 6))


def test_images_keep_as_many_as_stand_out():
    ctx = ragged()
    plan = PruMerge(1.0, adaptive=True).plan(ctx)
    # at least one stays, and one more holds what is left out
    assert plan.counts.tolist() == [4, 2, 2]
    assert plan.anchor[0, :3].tolist() == [9, 30, 5]
    assert bool((plan.apply(ctx.feats)[1, 2:] == 0).all())
    for i in range(3):
        alone = context(ctx.wide_saliency[i : i + 1], ctx.wide_keys[i : i + 1], ctx.feats[i : i + 1])
        found = PruMerge(1.0, adaptive=True).plan(alone).apply(alone.feats)[0]
        torch.testing.assert_close(plan.apply(ctx.feats)[i, : len(found)], found)


def test_the_ratio_is_the_most_that_adaptive_keeps():
    assert PruMerge(0.075, adaptive=True).plan(ragged()).counts.tolist() == [3, 2, 2]
    assert not PruMerge(1.0, adaptive=True).idle() and PruMerge(1.0).idle()


def test_fewer_than_no_neighbours_are_refused():
    with pytest.raises(ValueError, match="neighbours -1 is below 0"):
        PruMerge(0.5, neighbours=-1)
