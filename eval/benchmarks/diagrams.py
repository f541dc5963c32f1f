"""Diagrams: perception of geometry on drawn figures, a stand-in for four benchmarks.

Origin:  this project; tasks and scorers of Geoperception (arXiv:2412.08737), MATHGLANCE (arXiv:2503.20745),
         Tangram (arXiv:2408.13854) and Slow Perception (arXiv:2412.20631)
Rule:    each item's own scorer, from its raw text; mean per task, unweighted mean of a family's tasks, and of families
Where:   the generator's test split, which no training item comes from; levels 1 to 3 in turn
Differs: figures are procedural, so rows are named standin/...: they compare models with each other and never with
         published scores; the released scorers' numbers, with their defects, stand beside ours as `official`
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, Literal

from gnomon.data.sample import IMAGE_MARK, Sample
from gnomon.data.sources.diagrams import source
from gnomon.data.sources.diagrams.source import LEVELS, TASKS
from gnomon.eval.answer import lettered
from gnomon.eval.benchmark import Benchmark, Item, Score
from gnomon.eval.names import check
from gnomon.eval.scorers import geoperception, mathglance, slow_perception, tangram

# An index means the same random numbers in every task; so each task and level has indices of its own, this far apart.
STRIDE = 1000

# Twenty lines of four numbers, digit by digit; all other answers are short.
LONG_ANSWER, SHORT_ANSWER = 768, 64


class Diagrams(Benchmark):
    """Questions about drawn figures. Which items exist depends on no option but seed, size, style and prompt.

    tasks, levels   which of them; all by default
    size            height and width at which figures are drawn
    prompt          `question`; `official` for the released Geoperception suffixes; `words` for multiple choice without
                    its choices, where the answer has to be the name itself
    style           `held_out` draws with fonts and colours that training figures do not have
    """

    name, overall = "diagrams", "standin/diagrams"
    default_limit = 200

    def __init__(
        self,
        *,
        tasks: list[str] | None = None,
        levels: list[int] | None = None,
        seed: int = 0,
        size: tuple[int, int] = (224, 224),
        prompt: Literal["question", "official", "words"] = "question",
        style: Literal["default", "held_out", "clean"] = "default",
    ) -> None:
        self.tasks = list(TASKS) if tasks is None else sorted(set(tasks), key=_position)
        self.levels = list(LEVELS) if levels is None else sorted(set(levels))
        self._named = prompt == "words"
        self._sources = {
            (task, level): source.Diagrams(
                count=1 << 40,
                seed=seed,
                split="test",
                tasks=[task],
                levels=[level],
                size=size,
                prompt=prompt,
                style=style,
            )
            for task in self.tasks
            for level in self.levels
        }
        self.protocol = (
            f"stand-ins, {prompt} prompt, {style} style, figures of {size[0]}x{size[1]}, generator seed {seed}; "
            "greedy decoding; strict scoring"
        )

    def settings(self) -> dict[str, Any]:
        """The generator's source is part of them: a figure drawn otherwise is another question."""
        about = {"tasks": self.tasks, "levels": self.levels, "generator_sha256": source.generator()}
        return {**self.spec(), **about}

    def count(self, limit: int | None = None) -> int:
        return len(self.tasks) * (self.default_limit if limit is None else limit)

    def examples(self, limit: int | None = None) -> Iterator[Sample]:
        """Tasks in turn and levels in turn, so that the beginning is as balanced as the whole."""
        for position in range(self.default_limit if limit is None else limit):
            turn, level = divmod(position, len(self.levels))
            for task in self.tasks:
                yield self._sample(task, self.levels[level], turn)

    def _sample(self, task: str, level: int, turn: int) -> Sample:
        slot = _position(task) * len(LEVELS) + LEVELS.index(level)
        sample = self._sources[task, level][turn * STRIDE + slot]
        return replace(sample, id=f"{task}/{level}/{turn}")

    def sample(self, item: Item) -> Sample:
        task, level, turn = item.id.split("/")
        return self._sample(task, int(level), int(turn))

    def item(self, sample: Sample) -> Item:
        meta = sample.meta
        family = f"standin/{meta['family']}"
        # Tangram reports each of its elements; it is one task of the generator
        task = meta["predicate"].replace(" ", "_") if meta["family"] == "tangram" else meta["task"]
        # two of Geoperception's tasks have their choices in the question itself
        spoken = self._named and meta["family"] == "mathglance"
        return Item(
            id=sample.id,
            family=family,
            task=f"{family}/{task}",
            level=meta["level"],
            question=sample.turns[0].text.replace(IMAGE_MARK, "").strip(),
            reference=sample.answer,
            target=sample.turns[-1].text,
            max_new_tokens=LONG_ANSWER if meta["family"] == "slow_perception" else SHORT_ANSWER,
            chance=1 / len(meta["choices"]) if "choices" in meta and not spoken else None,
            meta={"predicate": meta["predicate"], "choices": None if spoken else meta.get("choices")},
        )

    def score(self, raw: str, item: Item) -> Score:
        return _SCORERS[item.family](raw, item)


def _geoperception(raw: str, item: Item) -> Score:
    about = {"reference": item.reference, "predicate": item.meta["predicate"], "question": item.question}
    return replace(geoperception.strict(raw, **about), detail={"official": geoperception.official(raw, **about)})


def _mathglance(raw: str, item: Item) -> Score:
    if item.meta["predicate"] == "task_grd":
        return mathglance.grounding(raw, reference=tuple(item.reference))
    if item.meta["choices"] is None:
        return mathglance.word(raw, reference=item.target)
    return mathglance.choice(raw, reference=item.reference, options=lettered(item.meta["choices"]))


_SCORERS: dict[str, Callable[[str, Item], Score]] = {
    "standin/geoperception": _geoperception,
    "standin/mathglance": _mathglance,
    "standin/tangram": lambda raw, item: tangram.strict(raw, reference=item.reference),
    "standin/slow_perception": lambda raw, item: slow_perception.score(raw, reference=item.target),
}


def _position(task: str) -> int:
    check("task", task, list(TASKS))
    return list(TASKS).index(task)
