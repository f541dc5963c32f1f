"""Scenes: an endless supply of posed views of 3-D scenes, with questions that no single picture answers."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, NamedTuple

from gnomon.data import cameras
from gnomon.data.cameras import inverse
from gnomon.data.generator import generator_sha256
from gnomon.data.sample import IMAGE_MARK, Sample, Source, Turn
from gnomon.data.sources.diagrams import dice
from gnomon.data.sources.scenes.build import build
from gnomon.data.sources.scenes.draws import Draws
from gnomon.data.sources.scenes.layout import COLOURS, Layout, Setting
from gnomon.data.sources.scenes.question import Question
from gnomon.data.sources.scenes.render import render
from gnomon.data.sources.scenes.scene import Scene
from gnomon.data.sources.scenes.tasks.base import Chosen, Task
from gnomon.data.sources.scenes.tasks.between import Between
from gnomon.data.sources.scenes.tasks.count import Count
from gnomon.data.sources.scenes.tasks.direction import Direction
from gnomon.data.sources.scenes.tasks.distance import Closest, Distance
from gnomon.data.sources.scenes.tasks.larger import Larger
from gnomon.data.sources.scenes.tasks.mirror import Mirror
from gnomon.data.sources.scenes.tasks.motion import MotionAngle, MotionDirection
from gnomon.data.sources.scenes.tasks.nearer import Nearer
from gnomon.data.sources.scenes.tasks.order import DepthOrder, Height

TASKS: dict[str, Task] = {
    "nearer": Nearer(),
    "distance": Distance(),
    "closest": Closest(),
    "larger": Larger(),
    "direction": Direction(),
    "between": Between(),
    "motion_direction": MotionDirection(),
    "motion_angle": MotionAngle(),
    "count": Count(),
    "depth_order": DepthOrder(),
    "height": Height(),
    "mirror": Mirror(),
}
SPLITS = ("train", "test")
PROMPTS = ("question", "words")
LEAST_SIDE = 48
MOST_VIEWS = 256
_LAYOUTS = 2000


class Item(NamedTuple):
    """Everything about one item but its pixels; `draws` go on with the pixel noise."""

    task: str
    question: Question
    layout: Layout
    chosen: Chosen
    scene: Scene
    numbers: list[int]
    draws: Draws


class Scenes(Source):
    """Item i is a pure function of (seed, split, i) and the arguments: any order, any process, no files.

    Tasks take turns (all that the number of views allows, when `tasks` is left out), and so do, in shuffled blocks, the
    answers of each: any stretch of items is balanced. `geometry` holds all views with depth, normals, points, instances
    and cameras; `images`, for the language model, the first view only, or (shown="all") every one of them.
    meta["class"] says which of the task's equally frequent answers (of numbers: ranges) it is, for a probe to predict.

    views      how many, or the fewest and the most
    size       height and width of a view
    objects    fewest and most objects in the first view; some tasks need more, or have a number of their own
    distances  nearest and farthest from the first camera
    focal      shortest and longest focal length, in terms of the view's shorter side; the same for all views of a scene
    baseline   nearest and farthest of further cameras from the first
    angular    smallest and largest angular radius of an object in the first view, in radians
    prompt     "words": without the list of choices, and the right one itself as the reply
    """

    def __init__(
        self,
        *,
        count: int,
        seed: int = 0,
        split: Literal["train", "test"] = "train",
        tasks: list[str] | None = None,
        views: int | tuple[int, int] = (2, 4),
        shown: Literal["first", "all"] = "first",
        size: tuple[int, int] = (112, 112),
        objects: tuple[int, int] = (4, 6),
        distances: tuple[float, float] = (2.0, 8.0),
        focal: tuple[float, float] = (0.8, 1.4),
        baseline: tuple[float, float] = (0.3, 1.0),
        angular: tuple[float, float] = (0.04, 0.12),
        prompt: Literal["question", "words"] = "question",
    ) -> None:
        views = (views, views) if isinstance(views, int) else (int(views[0]), int(views[1]))
        _check_choice("split", split, SPLITS)
        _check_choice("shown", shown, ("first", "all"))
        _check_choice("prompt", prompt, PROMPTS)
        for name, value, least in (("count", count, 0), ("seed", seed, 0)):
            if value < least:
                raise ValueError(f"{name} is {value}, but must be at least {least}")
        if min(size) < LEAST_SIDE:
            raise ValueError(f"size {tuple(size)} is too small for objects; use at least {LEAST_SIDE} pixels")
        _check_range("views", views, 1, MOST_VIEWS)
        _check_range("objects", objects, 2, len(COLOURS))
        _check_range("distances", distances, 0.5, 100)
        _check_range("focal", focal, 0.3, 5)
        _check_range("baseline", baseline, 0.01, 0.9 * distances[0])
        _check_range("angular", angular, 0.01, 0.2)
        if tasks is None:
            tasks = [name for name, task in TASKS.items() if task.views <= views[1]]
        if not tasks:
            raise ValueError(f"tasks is empty; choose from {', '.join(TASKS)}")
        for name in tasks:
            _check_choice("task", name, tuple(TASKS))
            if TASKS[name].views > views[1]:
                raise ValueError(
                    f"task {name!r} needs {TASKS[name].views} views, but views is at most {views[1]}; raise it or "
                    "leave the task out"
                )
        self.count, self.seed, self.split, self.tasks = count, seed, split, list(tasks)
        self.shown, self.prompt = shown, prompt
        self.setting = Setting(
            size=(int(size[0]), int(size[1])),
            views=views,
            objects=(int(objects[0]), int(objects[1])),
            distances=distances,
            focal=focal,
            baseline=baseline,
            angular=angular,
        )

    def __len__(self) -> int:
        return self.count

    def settings(self) -> dict[str, Any]:
        return {
            "seed": self.seed,
            "split": self.split,
            "tasks": self.tasks,
            "shown": self.shown,
            "prompt": self.prompt,
            **asdict(self.setting),
            "generator_sha256": generator(),
        }

    def __getitem__(self, index: int) -> Sample:
        item = self.compose(index)
        geometry = render(item.scene, self.setting.size, item.draws)
        question, listed = item.question, self.prompt == "question"
        images = geometry.views if self.shown == "all" else geometry.views[:1]
        text = question.listed() if listed else question.text
        lettered = listed and question.predicate == "choice"
        reply = question.letter if lettered else question.words
        marks = f"{IMAGE_MARK}\n" * len(images)
        return Sample(
            id=f"scenes/{self.split}/{self.seed}/{index}",
            turns=(Turn("user", marks + text), Turn("assistant", reply)),
            images=images,
            answer=question.answer if question.predicate == "number" else reply,
            meta=_meta(item),
            geometry=geometry,
        )

    def compose(self, index: int, *, answer: int | None = None) -> Item:
        """The item; with `answer`, its twin of another answer, whose first view and question are the same."""
        if not 0 <= index < self.count:
            raise IndexError(f"item {index} of a source of {self.count}")
        name = self.tasks[index % len(self.tasks)]
        task = TASKS[name]
        drawn, place = self._answer(index)
        answer = drawn if answer is None else answer
        draws = Draws(self.seed, SPLITS.index(self.split), index)
        views = draws.integer(max(task.views, self.setting.views[0]), self.setting.views[1])
        for _ in range(_LAYOUTS):
            layout = task.layout(draws, self.setting, views)
            if layout is None:
                continue
            chosen = task.choose(task.candidates(draws, layout, self.setting), answer)
            if chosen is not None:
                question = task.question(draws, chosen, place)
                scene, numbers = build(draws, layout, chosen, self.setting)
                return Item(name, question, layout, chosen, scene, numbers, draws)
        raise ValueError(
            f"no scene for {name!r} in {_LAYOUTS} draws with {self.setting}; widen distances, or use fewer or smaller "
            "objects"
        )

    def _answer(self, index: int) -> tuple[int, int]:
        """Which answer, and at which place among the choices; in a block, each of either once, in random order."""
        turn, task = divmod(index, len(self.tasks))
        answers = TASKS[self.tasks[task]].answers
        block, within = divmod(turn, answers)
        draws = Draws(self.seed, len(SPLITS) + SPLITS.index(self.split), block * len(self.tasks) + task)
        return draws.shuffled(range(answers))[within], draws.shuffled(range(answers))[within]


def generator() -> str:
    """A hash of what renders; what it draws its numbers by, and looks from, lies elsewhere."""
    return generator_sha256(Path(__file__).parent, cameras, dice)


def _meta(item: Item) -> dict:
    """In plain types. Centres are in the world's frame; the objects asked about come first, `id` is their instance."""
    world, radii = inverse(item.scene.extrinsics[0]), item.chosen.radii
    centres = item.chosen.centres @ world[:, :3].T + world[:, 3]
    return {
        "task": item.task,
        "family": TASKS[item.task].family,
        "level": 1,
        "predicate": item.question.predicate,
        "choices": list(item.question.choices),
        "class": item.chosen.answer,
        "asked": TASKS[item.task].asked,
        "views": len(item.scene.extrinsics),
        "objects": [
            {"id": number, "name": look.name, "centre": centre.tolist(), "radius": float(radius)}
            for number, look, centre, radius in zip(item.numbers, item.chosen.looks, centres, radii)
        ],
    }


def _check_choice(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ValueError(f"{name} {value!r} is unknown; choose from {', '.join(known)}")


def _check_range(name: str, value: tuple[float, float], least: float, most: float) -> None:
    if len(value) != 2 or not least <= value[0] <= value[1] <= most:
        raise ValueError(f"{name} is {tuple(value)}, but must be a low and a high number within {least:g} and {most:g}")
