"""Are two figures made of cubes the same, turned, or mirror images? (mental rotation)"""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from itertools import permutations, product

import numpy as np

from gnomon.data.sources.scenes import solids, textures
from gnomon.data.sources.scenes.candidates import Candidates
from gnomon.data.sources.scenes.draws import Draws
from gnomon.data.sources.scenes.layout import COLOURS, Layout, Look, Setting, albedo, arrange
from gnomon.data.sources.scenes.question import Question, choice
from gnomon.data.sources.scenes.tasks.base import Chosen, Task

# Larger than single objects, so that their cubes can be made out.
_ANGULAR = (0.13, 0.17)
_ARMS, _LONGEST = 4, 3


class Mirror(Task):
    """A figure and its mirror image are equally likely, and so is any turn: each picture by itself says nothing."""

    family, answers, asked = "mirror", 2, 2

    def layout(self, draws: Draws, setting: Setting, views: int) -> Layout | None:
        cubes = figure(draws)
        looks = [
            Look(
                name=f"{colour} figure",
                kind=solids.BOX,
                extent=np.full(3, 3**-0.5),
                turn=draws.rotation(),
                colour=albedo(draws, colour),
                pattern=textures.SEAMS,
                cycles=1.0,
                cubes=cubes,
            )
            for colour in draws.sample(COLOURS, 2)
        ]
        return arrange(draws, setting, looks, views=views, angular=_ANGULAR)

    def works(self, found: Candidates) -> np.ndarray:
        return np.ones((len(found.centres), 2), dtype=bool)

    def choose(self, found: Candidates, answer: int) -> Chosen | None:
        chosen = super().choose(found, answer)
        if chosen is None or answer == 0:
            return chosen
        one, two = chosen.looks
        return replace(chosen, looks=[one, replace(two, cubes=two.cubes * [-1, 1, 1])])

    def question(self, draws: Draws, chosen: Chosen, place: int) -> Question:
        one, two = draws.shuffled(chosen.names(2))
        text = f"Could the {one} be turned to look like the {two}, or only in a mirror? Answer same or mirrored."
        return choice(draws, text, ("same", "mirrored"), chosen.answer, place)


def figure(draws: Draws) -> np.ndarray:
    """(n,3) int: four arms of cubes, each at a right angle to the one before, that no turn makes its mirror image."""
    while True:
        at, before, cubes = np.zeros(3, dtype=int), -1, [(0, 0, 0)]
        for _ in range(_ARMS):
            before = draws.pick([axis for axis in range(3) if axis != before])
            step = draws.pick((-1, 1)) * np.eye(3, dtype=int)[before]
            for _ in range(draws.integer(1, _LONGEST)):
                at = at + step
                cubes.append(tuple(at.tolist()))
        found = np.array(cubes)
        if len(set(cubes)) == len(cubes) <= 9 and not same(found, found * [-1, 1, 1]):
            return found


@cache
def turns() -> np.ndarray:
    """(24,3,3) int: the rotations of a cube."""
    found = []
    for order, signs in product(permutations(range(3)), product((-1, 1), repeat=3)):
        matrix = np.zeros((3, 3), dtype=int)
        matrix[range(3), order] = signs
        if np.linalg.det(matrix) > 0:
            found.append(matrix)
    return np.array(found)


def same(one: np.ndarray, two: np.ndarray) -> bool:
    """Does some rotation make the first figure the second?"""
    return _key(one) == _key(two)


def _key(cubes: np.ndarray) -> tuple:
    """The same for all rotations of a figure."""
    turned = np.einsum("rij,nj->rni", turns(), cubes)
    turned -= turned.min(axis=1, keepdims=True)
    # a cell's number, for figures that fit into 16 cells a side
    return min(tuple(sorted(each)) for each in (turned @ [256, 16, 1]).tolist())
