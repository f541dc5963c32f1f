"""Scenes: questions about space that no single picture answers.

Origin:  this project; question families after VSI-Bench (arXiv:2412.14171), numbers scored by its rule
Rule:    choices exactly, numbers by mean relative accuracy; mean per task, unweighted mean of a family's tasks, and of
         the ten families
Where:   the generator's test split, which no training item comes from
Differs: scenes are procedural, and a first view is compatible with every answer by construction, so chance is what a
         model without geometry can reach; scores are not those of VSI-Bench
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Literal

from gnomon.data.sample import IMAGE_MARK, Sample
from gnomon.data.sources.scenes import source
from gnomon.data.sources.scenes.source import TASKS
from gnomon.eval.benchmark import Benchmark, Item, Score
from gnomon.eval.names import check
from gnomon.eval.scorers import scenes


class Scenes(Benchmark):
    """Questions about procedural scenes, each task from a stream of its own.

    tasks   which of them; all by default (with one view: all that make sense then)
    size    height and width of a view
    views   how many views, or the fewest and the most
    shown   `first`: only a geometry encoder sees the others; `all`: the vision encoder sees every view
    prompt  `question`; `words` for choices without their list, where the answer has to be the choice itself
    objects, distances, focal, baseline  as the source has them (None: its own); others than a model learned from show
            what it makes of scenes of another kind
    """

    name, overall = "scenes", "scenes"
    default_limit = 200

    def __init__(
        self,
        *,
        tasks: list[str] | None = None,
        seed: int = 0,
        size: tuple[int, int] = (112, 112),
        views: int | tuple[int, int] = (2, 4),
        shown: Literal["first", "all"] = "first",
        prompt: Literal["question", "words"] = "question",
        objects: tuple[int, int] | None = None,
        distances: tuple[float, float] | None = None,
        focal: tuple[float, float] | None = None,
        baseline: tuple[float, float] | None = None,
    ) -> None:
        # one stream with all tasks in turn, so that an item does not depend on which of them are asked for
        most = views if isinstance(views, int) else views[1]
        known = [task for task in TASKS if TASKS[task].views <= most]
        ranges = {"objects": objects, "distances": distances, "focal": focal, "baseline": baseline}
        # a list when it comes from a file
        given = {name: tuple(value) for name, value in ranges.items() if value is not None}
        self._source = source.Scenes(
            count=1 << 40,
            seed=seed,
            split="test",
            tasks=known,
            size=size,
            views=views,
            shown=shown,
            prompt=prompt,
            **given,
        )
        for task in tasks or ():
            check("task", task, known)
        self.tasks = [task for task in known if tasks is None or task in tasks]
        self._named = prompt == "words"
        told = "".join(f", {name} {low:g} to {high:g}" for name, (low, high) in given.items())
        self.protocol = (
            f"procedural scenes, {prompt} prompt, views of {size[0]}x{size[1]} (the model sees {shown}){told}, "
            f"generator seed {seed}; greedy decoding; strict scoring, numbers by mean relative accuracy"
        )

    def settings(self) -> dict[str, Any]:
        """The generator's source is part of them: a scene rendered otherwise is another question."""
        return {**self.spec(), "tasks": self.tasks, "generator_sha256": source.generator()}

    def count(self, limit: int | None = None) -> int:
        return len(self.tasks) * (self.default_limit if limit is None else limit)

    def examples(self, limit: int | None = None) -> Iterator[Sample]:
        """Tasks in turn, so that the beginning is as balanced as the whole."""
        for turn in range(self.default_limit if limit is None else limit):
            for task in self.tasks:
                yield self._sample(task, turn)

    def _sample(self, task: str, turn: int) -> Sample:
        known = self._source.tasks
        return replace(self._source[turn * len(known) + known.index(task)], id=f"{task}/{turn}")

    def sample(self, item: Item) -> Sample:
        task, turn = item.id.split("/")
        return self._sample(task, int(turn))

    def item(self, sample: Sample) -> Item:
        meta = sample.meta
        choices = meta["choices"]
        return Item(
            id=sample.id,
            family=f"scenes/{meta['family']}",
            task=f"scenes/{meta['task']}",
            level=meta["level"],
            question=sample.turns[0].text.replace(IMAGE_MARK, "").strip(),
            reference=sample.answer,
            target=sample.turns[-1].text,
            chance=1 / len(choices) if choices else None,
            meta={"predicate": meta["predicate"], "choices": None if self._named else choices},
        )

    def score(self, raw: str, item: Item) -> Score:
        if item.meta["predicate"] == "number":
            return scenes.number(raw, reference=item.reference)
        if item.meta["choices"] is None:
            return scenes.word(raw, reference=item.target)
        return scenes.choice(raw, reference=item.reference, choices=item.meta["choices"])
