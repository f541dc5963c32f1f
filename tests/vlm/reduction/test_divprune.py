"""DivPrune: the sheet's four directions, against trying all starts, and equal tokens."""

import math

import torch

from gnomon.vlm.reduction.base import ReduceContext
from gnomon.vlm.reduction.divprune import DivPrune


def kept(feats: torch.Tensor, ratio: float) -> list[list[int]]:
    cell = torch.zeros(*feats.shape[:2], 2, dtype=torch.long)
    return DivPrune(ratio).plan(ReduceContext(feats, ["a"] * len(feats), cell, cell[..., 0])).index[..., 0].tolist()


def test_four_directions():
    angles = torch.tensor([0.0, 10.0, 90.0, 180.0]) * math.pi / 180
    feats = torch.stack([angles.cos(), angles.sin()], 1)[None]
    # lengths do not count
    feats = feats * torch.tensor([1.0, 5.0, 0.1, 3.0])[:, None]
    # picked in the order 180, 0, 90: the nearest others are .015, .015, .826 and 1.0 away
    assert [kept(feats, share)[0] for share in (0.25, 0.5, 0.75)] == [[3], [0, 3], [0, 2, 3]]
    assert kept(feats, 1.0) == [[0, 1, 2, 3]]


def test_equal_tokens_are_each_kept_once():
    assert kept(torch.ones(1, 6, 3), 0.5) == [[0, 1, 2]]
    # one that stands out comes first, then the first of the equal ones
    feats = torch.tensor([[1.0, 0], [1, 0], [0, 1], [1, 0]])[None]
    assert kept(feats, 0.5) == [[0, 2]]


def test_each_pick_is_the_farthest_from_those_before():
    feats = torch.randn(2, 40, 6, generator=torch.Generator().manual_seed(0))
    for group, picks in zip(feats.double(), kept(feats, 0.3)):
        distance = 1 - torch.nn.functional.cosine_similarity(group[:, None], group[None], dim=2)
        others = distance + 9 * torch.eye(40)
        expected = [int(others.amin(1).argmax())]
        while len(expected) < 12:
            rest = [i for i in range(40) if i not in expected]
            expected.append(max(rest, key=lambda i: min(float(distance[i, j]) for j in expected)))
        assert picks == sorted(expected)


def test_the_order_of_the_tokens_does_not_matter():
    feats = torch.randn(1, 30, 5, generator=torch.Generator().manual_seed(1))
    # one alone on its side: two that are each other's nearest are a tie
    feats[0, 7] = -feats[0].mean(0) * 9
    order = torch.randperm(30, generator=torch.Generator().manual_seed(2))
    moved = kept(feats[:, order], 0.4)[0]
    assert sorted(order[moved].tolist()) == kept(feats, 0.4)[0]
