"""How many objects are there, over all views?"""

from __future__ import annotations

import numpy as np

from gnomon.data.sources.scenes import candidates
from gnomon.data.sources.scenes.candidates import Candidates
from gnomon.data.sources.scenes.draws import Draws
from gnomon.data.sources.scenes.layout import Layout, Setting, arrange, objects
from gnomon.data.sources.scenes.question import Question
from gnomon.data.sources.scenes.tasks.base import Chosen, Task

# So many objects are in the first view; up to so many more are only in others.
SHOWN, SPARE = 3, 3
_ROWS, _PROPOSALS = 48, 40
# Not so far away that they could be behind the wall.
_FARTHEST = 0.75


class Count(Task):
    """The first view always shows as many; the others also show some that it does not."""

    family, answers, asked, views = "count", SPARE + 1, 0, 2
    wander = 1.5

    def layout(self, draws: Draws, setting: Setting, views: int) -> Layout | None:
        return arrange(draws, setting, objects(draws, SHOWN + SPARE), views=views, shown=SHOWN)

    def candidates(self, draws: Draws, layout: Layout, setting: Setting) -> Candidates:
        """With three more objects (or as many as there is room for; `works` then says no) outside of the first view."""
        cameras = candidates.rigs(draws, layout, setting, wander=self.wander, rows=_ROWS)
        found = candidates.at(layout, draws.spread(*setting.distances, _ROWS, SHOWN), cameras)
        centres, radii = self._proposals(draws, found, setting)
        place = found.centres, found.radii
        for _ in range(SPARE):
            place = _with_one_more(*place, centres, radii)
        return Candidates(layout, *place, cameras)

    def _proposals(self, draws: Draws, found: Candidates, setting: Setting) -> tuple[np.ndarray, np.ndarray]:
        """(M,P,3) centres and (M,P) radii: whole in some further view, entirely out of the first; radius 0 if not."""
        layout, cameras = found.layout, found.cameras
        near, far = setting.distances
        view = 1 + (draws.units(_ROWS, _PROPOSALS) * len(layout.baselines)).astype(int)
        camera = np.take_along_axis(cameras, view[:, :, None, None], axis=1)
        half = np.array(layout.size[::-1]) / (2 * layout.intrinsics[0, 0])
        ray = np.ones((_ROWS, _PROPOSALS, 3))
        ray[..., :2] = draws.spread(-1, 1, _ROWS, _PROPOSALS, 2) * half
        ray /= np.linalg.norm(ray, axis=-1, keepdims=True)
        away = draws.spread(near, near + _FARTHEST * (far - near), _ROWS, _PROPOSALS)
        place = away[..., None] * ray
        radius = away * np.sin(draws.spread(*setting.angular, _ROWS, _PROPOSALS))
        centre = np.einsum("mpij,mpi->mpj", camera[..., :3], place - camera[..., 3])
        # outside: a margin that reaches over the edge the other way
        outside = ~framed_at_all(layout, centre, 1.3 * radius)
        whole = candidates.framed(layout, place, 1.2 * radius)
        return centre, np.where(outside & whole, radius, 0)

    def works(self, found: Candidates) -> np.ndarray:
        spare = found.radii[:, SHOWN:] > 0
        shown = candidates.visible(found)[:, :, SHOWN:].any(axis=1)
        return np.repeat((spare & shown).all(axis=1)[:, None], self.answers, axis=1)

    def choose(self, found: Candidates, answer: int) -> Chosen | None:
        chosen = super().choose(found, answer)
        if chosen is None:
            return None
        n = SHOWN + answer
        return Chosen(answer, chosen.looks[:n], chosen.centres[:n], chosen.radii[:n], chosen.cameras)

    def question(self, draws: Draws, chosen: Chosen, place: int) -> Question:
        return Question("How many different objects do all the views show together?", SHOWN + chosen.answer)


def framed_at_all(layout: Layout, place: np.ndarray, radius: np.ndarray) -> np.ndarray:
    """Can any part of a ball around the camera-space point be in the picture?"""
    return candidates.framed(layout, place, -radius) | (place[..., 2] < 0.1)


def _with_one_more(
    centres: np.ndarray, radii: np.ndarray, more: np.ndarray, sizes: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The first proposal that is free of all that is there; radius 0 where there is none."""
    apart = np.linalg.norm(more[:, :, None] - centres[:, None], axis=-1)
    free = (sizes > 0) & (apart > 1.5 * (sizes[:, :, None] + radii[:, None])).all(axis=-1)
    pick = free.argmax(axis=1)
    rows = np.arange(len(pick))
    centre, radius = more[rows, pick], np.where(free.any(axis=1), sizes[rows, pick], 0)
    return np.concatenate([centres, centre[:, None]], axis=1), np.concatenate([radii, radius[:, None]], axis=1)
