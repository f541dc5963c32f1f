"""VisPruner: duplicates leave, and every turn against one written out token by token."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from gnomon.vlm.reduction.base import ReduceContext
from gnomon.vlm.reduction.vispruner import VisPruner


def context(saliency: Tensor, feats: Tensor) -> ReduceContext:
    cell = torch.zeros(*saliency.shape, 2, dtype=torch.long)
    return ReduceContext(feats, ["a"] * len(saliency), cell, cell[..., 0], saliency=saliency)


def one_by_one(saliency: list[float], feats: Tensor, total: int, important: int, turn: int) -> list[int]:
    order = sorted(range(len(saliency)), key=lambda i: -saliency[i])
    kept, rest = order[:important], order[important:]
    alike = F.cosine_similarity(feats[:, None], feats[None], dim=-1).tolist()
    while len(rest) > total - important:
        even, odd = rest[::2], rest[1::2]
        near = {a: max((alike[a][b] for b in odd), default=0) for a in even}
        even.sort(key=lambda a: -near[a])
        rest = even[min(turn, len(rest) - total + important) :] + odd
    return sorted(kept + rest)


@pytest.mark.parametrize(
    "total, important, turn", [(20, 10, 8), (11, 5, 8), (7, 0, 3), (33, 16, 8), (1, 0, 8), (12, 12, 8)]
)
def test_turns_against_one_by_one(total: int, important: int, turn: int):
    torch.manual_seed(total)
    saliency, feats = torch.rand(2, 41).double(), torch.randn(2, 41, 6).double()
    plan = VisPruner(total / 41, important=important / total, turn=turn).plan(context(saliency, feats))
    for group in range(2):
        expected = one_by_one(saliency[group].tolist(), feats[group], total, important, turn)
        assert plan.index[group, :, 0].tolist() == expected


@pytest.mark.parametrize("twins", [(1, 2), (3, 4), (2, 5)])
def test_of_two_equal_tokens_one_leaves(twins: tuple[int, int]):
    """At odd distance in the order of attention, one of them stands at an even place and one at an odd one."""
    feats = torch.eye(6)[None]
    feats[0, twins[1]] = 3 * feats[0, twins[0]]
    saliency = torch.tensor([[0.9, 0.5, 0.4, 0.3, 0.2, 0.1]])
    kept = VisPruner(5 / 6, important=0.2).plan(context(saliency, feats)).index.flatten().tolist()
    gone = set(range(6)) - set(kept)
    assert len(gone) == 1 and gone <= set(twins)


def test_larger_images_drop_more_in_a_turn():
    torch.manual_seed(0)
    saliency, feats = torch.rand(1, 1152).double(), torch.randn(1, 1152, 6).double()
    kept = VisPruner(1088 / 1152, important=1000 / 1088, turn=8).plan(context(saliency, feats)).index.flatten().tolist()
    assert kept == one_by_one(saliency[0].tolist(), feats[0], 1088, 1000, 16)
    assert kept != one_by_one(saliency[0].tolist(), feats[0], 1088, 1000, 8)


@pytest.mark.parametrize("options, words", [({"important": 1.5}, "important 1.5"), ({"turn": 0}, "turn 0 is below 1")])
def test_mistakes_are_named(options: dict, words: str):
    with pytest.raises(ValueError, match=words):
        VisPruner(0.5, **options)
