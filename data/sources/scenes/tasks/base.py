"""Task: one kind of question, as a rule that says which candidates make which answer true."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gnomon.data.sources.scenes import candidates
from gnomon.data.sources.scenes.candidates import ROWS, Candidates
from gnomon.data.sources.scenes.draws import Draws
from gnomon.data.sources.scenes.layout import Layout, Look, Setting, arrange, objects
from gnomon.data.sources.scenes.question import Question

_FEW = 12


@dataclass(frozen=True)
class Chosen:
    """The candidate that was taken. `answer` numbers the possible answers; centres are in the first camera's frame."""

    answer: int
    looks: list[Look]
    centres: np.ndarray
    radii: np.ndarray
    cameras: np.ndarray

    def names(self, count: int) -> list[str]:
        return [look.name for look in self.looks[:count]]

    @property
    def scale(self) -> str:
        """What absolute lengths can be measured against."""
        if len(self.cameras) == 1:
            return ""
        return f"The second view was taken {np.linalg.norm(self.cameras[1, :, 3]):.2f} m from the first. "


class Task:
    """
    family    whose mean it belongs to
    answers   how many answers there are, all equally likely; of numbers, how many ranges
    asked     the question is about the first so many objects of a layout
    views     how many are needed for the question to make sense
    wander    see candidates.rigs
    """

    family: str
    answers: int
    asked: int
    views = 1
    wander = 0.3

    def layout(self, draws: Draws, setting: Setting, views: int) -> Layout | None:
        count = max(self.asked, draws.integer(*setting.objects))
        return arrange(draws, setting, objects(draws, count), views=views)

    def candidates(self, draws: Draws, layout: Layout, setting: Setting) -> Candidates:
        cameras = candidates.rigs(draws, layout, setting, wander=self.wander)
        return candidates.at(layout, draws.spread(*setting.distances, ROWS, len(layout.rays)), cameras)

    def works(self, found: Candidates) -> np.ndarray:
        """(M,answers) bool: does the candidate make the answer true, clearly?"""
        raise NotImplementedError

    def choose(self, found: Candidates, answer: int) -> Chosen | None:
        """A candidate with that answer; None if there is any answer that the layout has no candidate for."""
        works = self.works(found)
        # the first few of each answer: whether all is seen is the costly question
        rows = np.unique(np.concatenate([np.flatnonzero(column)[:_FEW] for column in works.T]))
        works = works[rows] & candidates.seen(found.only(rows), self.asked)[:, None]
        if not works.any(axis=0).all():
            return None
        row = rows[works[:, answer].argmax()]
        # copies, so that the other candidates are not kept
        place = (each[row].copy() for each in (found.centres, found.radii, found.cameras))
        return Chosen(answer, found.layout.looks, *place)

    def question(self, draws: Draws, chosen: Chosen, place: int) -> Question:
        """`place` is where among the choices the right one goes."""
        raise NotImplementedError


def one_hot(values: np.ndarray, answers: int) -> np.ndarray:
    """(M,answers) from the number of the true answer (M,), -1 where it is not clear."""
    return values[:, None] == np.arange(answers)


def ranges(values: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """(M,len(edges)-1): in which range is the value?"""
    return (values[:, None] >= edges[:-1]) & (values[:, None] < edges[1:])


def or_list(names: Sequence[str]) -> str:
    return f"{', '.join(f'the {name}' for name in names[:-1])} or the {names[-1]}"
