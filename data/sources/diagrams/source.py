"""Diagrams: an endless supply of drawn figures with questions whose answers are exact."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from gnomon.data.generator import generator_sha256
from gnomon.data.sample import IMAGE_MARK, Sample, Source, Turn
from gnomon.data.sources.diagrams import render
from gnomon.data.sources.diagrams import style as styles
from gnomon.data.sources.diagrams.dice import Dice
from gnomon.data.sources.diagrams.figure import Figure, Rejected
from gnomon.data.sources.diagrams.labels import Label
from gnomon.data.sources.diagrams.official import official
from gnomon.data.sources.diagrams.question import Question, Task, in_words
from gnomon.data.sources.diagrams.tasks.annotation import ANNOTATION
from gnomon.data.sources.diagrams.tasks.count import COUNT
from gnomon.data.sources.diagrams.tasks.directions import PARALLEL, PERPENDICULAR
from gnomon.data.sources.diagrams.tasks.grounding import GROUNDING
from gnomon.data.sources.diagrams.tasks.measures import ANGLE, LONGER
from gnomon.data.sources.diagrams.tasks.points import POINT_ON_CIRCLE, POINT_ON_LINE
from gnomon.data.sources.diagrams.tasks.relation import RELATION
from gnomon.data.sources.diagrams.tasks.shape import SHAPE
from gnomon.data.sources.diagrams.tasks.tangram import TANGRAM
from gnomon.data.sources.diagrams.tasks.transcribe import TRANSCRIBE, transcript

TASKS: dict[str, Task] = {
    "point_on_line": POINT_ON_LINE,
    "point_on_circle": POINT_ON_CIRCLE,
    "angle": ANGLE,
    "longer": LONGER,
    "parallel": PARALLEL,
    "perpendicular": PERPENDICULAR,
    "annotation": ANNOTATION,
    "shape": SHAPE,
    "count": COUNT,
    "relation": RELATION,
    "grounding": GROUNDING,
    "tangram": TANGRAM,
    "transcribe": TRANSCRIBE,
}
LEVELS = (1, 2, 3)
SPLITS = ("train", "test")
PROMPTS = ("question", "official", "words")
LEAST_SIDE = 112
_LAYOUTS = 400


class Item(NamedTuple):
    """Everything about one item but its pixels."""

    figure: Figure
    style: styles.Style
    texts: list[Label]
    task: str
    level: int
    questions: list[tuple[str, Question]]


class Diagrams(Source):
    """Item i is a pure function of (seed, split, i) and the arguments: any order, any process, no files.

    mixture gives the weight of each level of each task, e.g. {"angle": {1: 1.0, 2: 0.2}}; without it every task in
    `tasks` is as likely as any other, and so is every level in `levels` (1: the fact alone, 2: inside a compound
    figure, 3: among several overlapping figures and distractors). questions=k puts up to k questions to the
    same figure, as later turns of one conversation; `answer` is then a list, and meta["questions"] holds the meta of
    each. prompt="official" appends the released prompt of a Geoperception question, with a reply in the form it asks
    for; prompt="words" puts a multiple choice question without its choices, with the right choice itself as the reply.
    ruler makes transcriptions follow a line in steps of that length, as Slow Perception does.
    """

    def __init__(
        self,
        *,
        count: int,
        seed: int = 0,
        split: Literal["train", "test"] = "train",
        tasks: list[str] | None = None,
        levels: list[int] | None = None,
        mixture: dict[str, dict[int, float]] | None = None,
        size: tuple[int, int] = (224, 224),
        questions: int = 1,
        prompt: Literal["question", "official", "words"] = "question",
        style: Literal["default", "held_out", "clean"] = "default",
        ruler: float | None = None,
    ) -> None:
        if mixture is None:
            mixture = {task: {level: 1.0 for level in levels or LEVELS} for task in tasks or TASKS}
        elif tasks is not None or levels is not None:
            raise ValueError("mixture already says which tasks and levels; leave out tasks and levels")
        _check_mixture(mixture)
        for name, value, least in (("count", count, 0), ("seed", seed, 0), ("questions", questions, 1)):
            if value < least:
                raise ValueError(f"{name} is {value}, but must be at least {least}")
        if min(size) < LEAST_SIDE:
            raise ValueError(f"size {tuple(size)} is too small for letters; use at least {LEAST_SIDE} pixels")
        if ruler is not None and ruler <= 0:
            raise ValueError(f"ruler is {ruler}, but must be above 0; the axes run from -10 to 10, try 4")
        _check_choice("split", split, SPLITS)
        _check_choice("prompt", prompt, PROMPTS)
        _check_choice("style", style, styles.STYLES)
        self.count, self.seed, self.split, self.mixture = count, seed, split, mixture
        self.size, self.questions, self.prompt = (int(size[0]), int(size[1])), questions, prompt
        self.style, self.ruler = style, ruler
        # One flat list of (task, level), so that one draw decides both.
        self._kinds = [(task, level) for task, weights in mixture.items() for level in weights]
        self._weights = [mixture[task][level] for task, level in self._kinds]

    def __len__(self) -> int:
        return self.count

    def settings(self) -> dict[str, Any]:
        return {
            "seed": self.seed,
            "split": self.split,
            "mixture": self.mixture,
            "size": list(self.size),
            "questions": self.questions,
            "prompt": self.prompt,
            "style": self.style,
            "ruler": self.ruler,
            "generator_sha256": generator(),
        }

    def __getitem__(self, index: int) -> Sample:
        item = self.compose(index)
        turns = []
        for k, (_, question) in enumerate(item.questions):
            text, reply = self._worded(question)
            turns += [Turn("user", f"{IMAGE_MARK}\n{text}" if k == 0 else text), Turn("assistant", reply)]
        metas = [
            {"task": task, "family": TASKS[task].family, "level": item.level, "predicate": q.predicate, **q.meta}
            for task, q in item.questions
        ]
        answers = [question.answer for _, question in item.questions]
        several = self.questions > 1
        return Sample(
            id=f"diagrams/{self.split}/{self.seed}/{index}",
            turns=tuple(turns),
            images=(render.render(item.figure, item.style, item.texts, self.size),),
            answer=answers if several else answers[0],
            meta={**metas[0], "questions": metas} if several else metas[0],
        )

    def compose(self, index: int) -> Item:
        if not 0 <= index < self.count:
            raise IndexError(f"item {index} of a source of {self.count}")
        dice = Dice(self.seed, SPLITS.index(self.split), index)
        task, level = self._kinds[dice.weighted(self._weights)]
        style = styles.drawn(dice, self.style)
        height, width = self.size
        room = (width / min(self.size), height / min(self.size))
        for _ in range(_LAYOUTS):
            figure, question = TASKS[task].make(dice, level, room)
            try:
                texts = render.layout(figure, style, self.size)
            except Rejected:
                continue
            return Item(figure, style, texts, task, level, [(task, question), *self._more(figure, dice, question)])
        raise AssertionError(f"no layout for {task} at level {level} in {_LAYOUTS} draws")

    def _more(self, figure: Figure, dice: Dice, first: Question) -> list[tuple[str, Question]]:
        """Further questions about the figure, none twice; fewer where the figure does not give more."""
        found: list[tuple[str, Question]] = []
        asked = {_gist(first)}
        for _ in range(4 * (self.questions - 1)):
            task, _level = self._kinds[dice.weighted(self._weights)]
            question = TASKS[task].ask(figure, dice)
            if question is not None and _gist(question) not in asked and len(found) < self.questions - 1:
                found.append((task, question))
                asked.add(_gist(question))
        return found

    def _worded(self, question: Question) -> tuple[str, str]:
        if self.ruler is not None and question.predicate == "transcription":
            return question.text, transcript(question.answer, self.ruler)
        if self.prompt == "words":
            return in_words(question)
        return official(question) if self.prompt == "official" else (question.text, question.reply)


def generator() -> str:
    """A hash of what draws."""
    return generator_sha256(Path(__file__).parent)


def _gist(question: Question) -> frozenset[str]:
    """The question's words with their letters in order, so that angle ABC and angle CBA count as one."""
    return frozenset("".join(sorted(word)) for word in re.findall(r"\w+", question.text.split("\n")[0]))


def _check_choice(name: str, value: str, known: Sequence[str]) -> None:
    if value not in known:
        raise ValueError(f"{name} {value!r} is unknown; choose from {', '.join(known)}")


def _check_mixture(mixture: dict[str, dict[int, float]]) -> None:
    for task, weights in mixture.items():
        _check_choice("task", task, tuple(TASKS))
        for level, weight in weights.items():
            if level not in LEVELS or weight < 0:
                raise ValueError(f"{task}: level {level}, weight {weight}; levels are 1, 2, 3, weights at least 0")
    if not any(weight > 0 for weights in mixture.values() for weight in weights.values()):
        raise ValueError(f"the mixture {mixture} gives no task any weight; give one of them a positive number")
