"""Tally by hand: means over what is there, of all calls together."""

from __future__ import annotations

import pytest
import torch

from gnomon.vlm.layout import Features
from gnomon.vlm.plan import ReductionPlan
from gnomon.vlm.tally import Tally

CPU = torch.device("cpu")


def test_ratio_of_means_and_mean_openness():
    tally = Tally()
    # tokens of norm 5 and 10, changed by 1 and 3
    before = Features(torch.tensor([[[3.0, 4.0], [6.0, 8.0]]]), [(1, 2)])
    tally.told(before, before.tokens + torch.tensor([[[1.0, 0.0], [0.0, -3.0]]]), torch.tensor([[0.25, 0.75]]))
    # one of norm 5 that stays, one that is padding
    plan = ReductionPlan(torch.tensor([[[0], [1]]]), count=torch.tensor([1]))
    thinned = Features(torch.tensor([[[0.0, 5.0], [9.0, 9.0]]]), [(1, 2)], plan=plan)
    tally.told(thinned, torch.zeros(1, 2, 2) + torch.tensor([0.0, 5.0]), torch.tensor(0.5))
    found = Tally.shares(tally.take(CPU))
    assert found == {"fusion_ratio": pytest.approx(4 / 20), "fusion_open": pytest.approx((0.25 + 0.75 + 0.5) / 3)}


def test_tokens_of_scenes_beside_text():
    tally = Tally()
    embeds = torch.tensor([[[2.0, 0.0], [0.0, 4.0], [7.0, 7.0]]])
    tally.added(torch.tensor([[[6.0, 0.0], [0.0, 6.0]]]), embeds, torch.tensor([[True, True, False]]))
    assert Tally.shares(tally.take(CPU)) == {"scene_ratio": pytest.approx(6 / 3)}


def test_what_was_taken_is_gone_and_ranks_add_up():
    first, second = Tally(), Tally()
    token = Features(torch.ones(1, 1, 1), [(1, 1)])
    first.told(token, token.tokens * 2, None)
    second.told(token, token.tokens, None)
    assert Tally.shares(first.take(CPU) + second.take(CPU)) == {"fusion_ratio": pytest.approx(0.5)}
    assert Tally.shares(first.take(CPU)) == {}


def test_it_holds_no_graph():
    tally = Tally()
    token = Features(torch.ones(1, 1, 1, requires_grad=True), [(1, 1)])
    tally.told(token, token.tokens * 2, None)
    assert not tally.take(CPU).requires_grad
