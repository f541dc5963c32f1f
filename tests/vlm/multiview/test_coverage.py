"""Frames chosen by what they add: against all choices there are, and by what the rule promises."""

from __future__ import annotations

from itertools import combinations, pairwise

import pytest
import torch

from gnomon.vlm.multiview.coverage import choose, cubes


def scene(frames: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Frames that look at places of their own in a box of 20 x 20 x 20 cubes."""
    draw = torch.Generator().manual_seed(seed)
    middle = torch.rand(frames, 1, 1, 3, generator=draw) * 16
    points = middle + torch.rand(frames, 3, 4, 3, generator=draw) * 4
    points[0, 0, 0], points[1, 0, 0] = torch.zeros(3), torch.full((3,), 20.0)
    return points, torch.rand(frames, 3, 4, generator=draw) + 0.5


@pytest.mark.parametrize("seed", range(4))
def test_greedy_choice(seed):
    """Each is one that adds most, so gains fall; and it is as good as (1 - 1/e) of the best, and as every third."""
    points, confidence = scene(9, seed)
    sets, chosen = cubes(points, confidence), choose(points, confidence, 3)
    most = max(len(set().union(*(sets[i] for i in some))) for some in combinations(range(9), 3))
    covered = len(set().union(*(sets[i] for i in chosen)))
    assert chosen == sorted(set(chosen)) and covered >= 0.63 * most
    assert covered >= len(set().union(*(sets[i] for i in (0, 3, 6))))
    one, two = choose(points, confidence, 1), choose(points, confidence, 2)
    assert set(one) <= set(two) <= set(chosen)
    gains = [len(set().union(*(sets[i] for i in some))) for some in ([], one, two, chosen)]
    steps = [after - before for before, after in pairwise(gains)]
    assert steps == sorted(steps, reverse=True)


def test_a_frame_that_is_there_twice_is_taken_once():
    points, confidence = scene(6, 0)
    points[3], confidence[3] = points[5], confidence[5]
    assert not {3, 5} <= set(choose(points, confidence, 5))


def test_cubes_by_hand():
    """A box of 20 x 40 x 60 has cubes of 1; unsure points and what is no number fall into none."""
    points = torch.tensor([[[[0.0, 0, 0], [20, 40, 60], [0.5, 0.5, 1.5]]], [[[torch.nan, 1, 1], [3, 3, 3], [7, 8, 9]]]])
    confidence = torch.tensor([[[1.0, 1, 1]], [[1, 0.9, 1]]])
    assert cubes(points, confidence) == [{(0, 0, 0), (20, 40, 60), (0, 0, 1)}, {(7, 8, 9)}]
    assert cubes(points, torch.full_like(confidence, 0.05)) == [set(), set()]


def test_where_nothing_is_known_frames_are_spread():
    points, confidence = torch.full((9, 2, 2, 3), torch.nan), torch.ones(9, 2, 2)
    assert choose(points, confidence, 3) == [0, 4, 8]
    assert choose(points, confidence, 12) == list(range(9))
