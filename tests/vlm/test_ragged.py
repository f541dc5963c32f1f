"""Images with different numbers of tokens: apart and together again, and reducers behind such."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from gnomon.vlm.layout import Features
from gnomon.vlm.plan import ReductionPlan
from gnomon.vlm.ragged import by_count, together
from gnomon.vlm.reduction.divprune import DivPrune
from gnomon.vlm.reduction.peap_fast import PEAPFast
from gnomon.vlm.reduction.tome import ToMe


def features(count: int) -> Features:
    draw = torch.Generator().manual_seed(0)
    return Features(
        torch.randn(count, 6, 4, generator=draw),
        [(2, 3)] * count,
        cls=torch.randn(count, 4, generator=draw),
        saliency=torch.rand(count, 6, generator=draw),
    )


def test_equal_numbers_are_left_alone():
    whole = features(3)
    parts = by_count(whole)
    assert len(parts) == 1 and parts[0][0] == [0, 1, 2] and parts[0][1] is whole and together(parts) is whole


def test_apart_and_together_is_what_it_was():
    kept = torch.tensor([[1, 1, 1, 0, 0, 0], [0, 0, 0, 0, 1, 0], [0, 1, 0, 1, 0, 1], [1, 1, 1, 1, 1, 1]]).bool()
    thinned = features(4).reduced(ReductionPlan.keep_where(kept))
    parts = by_count(thinned)
    assert [(members, part.counts) for members, part in parts] == [([0, 2], [3, 3]), ([1], [1]), ([3], [6])]
    assert all(part.tokens.shape[1] == part.counts[0] for _, part in parts)
    again = together(parts)
    assert torch.equal(again.tokens, thinned.tokens) and torch.equal(again.cls, thinned.cls)
    assert again.counts == thinned.counts
    for i, count in enumerate(again.counts):
        assert torch.equal(again.saliency[i, :count], thinned.saliency[i, :count])
        assert torch.equal(again.cells()[i, :count], thinned.cells()[i, :count])


def test_plans_of_different_widths_come_together():
    whole = features(2)
    pair = ReductionPlan.merge(torch.tensor([[0, 0, 1, 1, 1, -1]]), 2)
    mixed = replace(whole, tokens=whole.tokens[:1], grid=[(2, 3)], cls=whole.cls[:1], saliency=None).reduced(pair)
    plain = replace(whole, tokens=whole.tokens[1:], grid=[(2, 3)], cls=whole.cls[1:], saliency=None)
    found = together([([1], mixed), ([0], plain)])
    assert found.counts == [6, 2] and found.saliency is None
    torch.testing.assert_close(found.tokens[0], whole.tokens[1])
    torch.testing.assert_close(
        found.tokens[1, :2], torch.stack([whole.tokens[0, :2].mean(0), whole.tokens[0, 2:5].mean(0)])
    )
    torch.testing.assert_close(found.plan.apply(whole.tokens.flip(0)), found.tokens)


@pytest.mark.parametrize("inside", [True, False])
@torch.no_grad()
def test_reducers_behind_one_that_keeps_different_numbers(tiny, inside: bool):
    pages = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    pages[1, :, 16:], pages[2, :, :, 8:] = 255, 0
    model = tiny(reducers=[PEAPFast(inside=inside), ToMe(0.5, inside=inside), DivPrune(0.5)])
    model.reducers = model.reducers if inside else [model.reducers[0], model.reducers[2]]
    share = 0.25 if inside else 0.5
    names, number = ["a", "b", "c"], torch.zeros(3, dtype=torch.long)
    batch = model.connect(model.see(list(pages))[0], names, number)
    assert batch.counts == [int(share * n) for n in (16, 8, 4)]
    for i, page in enumerate(pages):
        alone = model.connect(model.see([page])[0], names[i : i + 1], number[:1])
        count = batch.counts[i]
        torch.testing.assert_close(batch.tokens[i, :count], alone.tokens[0], atol=1e-5, rtol=1e-4)
        assert torch.equal(batch.cells()[i, :count], alone.cells()[0])
