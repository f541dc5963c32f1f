"""Benchmark: questions, how an answer is read and scored, and how scores become rows of a table."""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from gnomon.data.sample import Sample
from gnomon.eval.metrics import interval, resampled_means, wilson
from gnomon.vlm.part import Part


@dataclass(frozen=True)
class Item:
    """All of a question that scoring needs, in plain types: what a record keeps beside the model's text.

    family      the benchmark whose score is the unweighted mean of its tasks, `standin/geoperception`
    task        the row of the table, `standin/geoperception/POL`
    reference   whatever the scorer compares with
    target      a text that earns the full score
    max_new_tokens  how long an answer may be
    chance      expected score of a blind guess, where the question has a fixed number of choices
    """

    id: str
    family: str
    task: str
    level: int
    question: str
    reference: Any
    target: str
    max_new_tokens: int = 64
    chance: float | None = None
    meta: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Score:
    """value in [0, 1]; parsed: the answer as it was understood, None if it was not; detail: diagnostics to average."""

    value: float
    parsed: str | None
    detail: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Scored:
    """An item with its score, and the image that it is about (the unit of resampling)."""

    item: Item
    score: Score
    group: Hashable


@dataclass(frozen=True)
class Row:
    """One line of the table. `tasks` says how many rows a mean is over; 0 for a task of its own.

    low, high  95 % bootstrap interval over images
    majority   score of the best constant answer
    detail     means of the scorer's diagnostics; of a mean, those that all its rows have
    family     that a task belongs to; empty for a mean
    """

    name: str
    levels: tuple[int, ...]
    n: int
    score: float
    low: float
    high: float
    majority: float
    chance: float | None
    unparsed: float
    tasks: int = 0
    detail: dict[str, float] = field(default_factory=dict)
    family: str = ""


class Benchmark(Part):
    """A set of questions with one protocol. Constructor arguments are its options and are kept with its results."""

    name: str
    protocol: str
    """What was asked and how it is scored, in one sentence; printed with every table."""

    overall: str
    """Name of the row that is the mean of all families."""

    candidates = 32
    """How many of the repeated reference answers, most frequent first, compete for the majority baseline."""

    def settings(self) -> dict[str, Any]:
        """All that decides about the questions, in plain types; results with different settings are never mixed."""
        return self.spec()

    def examples(self, limit: int | None = None) -> Iterator[Sample]:
        """The questions in a fixed order; with `limit`, the first so many of each task."""
        raise NotImplementedError

    def count(self, limit: int | None = None) -> int:
        """How many `examples(limit)` yields."""
        raise NotImplementedError

    def item(self, sample: Sample) -> Item:
        raise NotImplementedError

    def score(self, raw: str, item: Item) -> Score:
        """From the model's text, and nothing else, so that old answers can be scored again."""
        raise NotImplementedError

    def sample(self, item: Item) -> Sample:
        """The sample that an item was made from, to look at its image again."""
        raise NotImplementedError

    def prompt(self, sample: Sample) -> Sample:
        """The sample without the answer that a training set would have."""
        turns = sample.turns[:-1] if sample.turns[-1].role == "assistant" else sample.turns
        return replace(sample, turns=turns)

    def majority(self, items: Sequence[Item]) -> float:
        """Mean score of the best constant answer, by this benchmark's own scorer."""
        found = Counter(item.target for item in items).most_common(self.candidates)
        # where all are different, none is better than the others by design: a few show what any of them earns
        frequent = [target for target, count in found if count > 1] or [target for target, _ in found[:4]]
        return max(float(np.mean([self.score(target, item).value for item in items])) for target in frequent)

    def summary(self, scored: Sequence[Scored], *, by_level: bool = False, resamples: int = 10_000) -> list[Row]:
        """A row per task (and, `by_level`, per level of it), the unweighted mean of each family and of all families."""
        rows: list[Row] = []
        families: list[tuple[Row, np.ndarray]] = []
        for family, members in _grouped(scored, lambda s: s.item.family).items():
            tasks = _grouped(members, lambda s: s.item.task)
            drawn = {task: _draws(of_task, resamples) for task, of_task in tasks.items()}
            own = {task: self._row(task, of_task, drawn[task]) for task, of_task in tasks.items()}
            for task, of_task in tasks.items():
                rows.append(own[task])
                levels = _grouped(of_task, lambda s: s.item.level)
                if by_level and len(levels) > 1:
                    rows += [self._row(task, levels[k], _draws(levels[k], resamples)) for k in sorted(levels)]
            draws = np.mean(list(drawn.values()), axis=0)
            mean = _mean_row(family, list(own.values()), draws)
            families.append((mean, draws))
            if len(tasks) > 1:
                rows.append(mean)
        if len(families) > 1:
            rows.append(
                _mean_row(self.overall, [row for row, _ in families], np.mean([d for _, d in families], axis=0))
            )
        return rows

    def _row(self, name: str, scored: Sequence[Scored], draws: np.ndarray) -> Row:
        chances = [s.item.chance for s in scored if s.item.chance is not None]
        details = {key for s in scored for key in s.score.detail}
        low, high = _interval(draws, len(scored))
        return Row(
            name=name,
            levels=tuple(sorted({s.item.level for s in scored})),
            n=len(scored),
            score=float(np.mean([s.score.value for s in scored])),
            low=low,
            high=high,
            majority=self.majority([s.item for s in scored]),
            chance=float(np.mean(chances)) if len(chances) == len(scored) else None,
            unparsed=float(np.mean([s.score.parsed is None for s in scored])),
            detail={
                k: float(np.mean([s.score.detail[k] for s in scored if k in s.score.detail])) for k in sorted(details)
            },
            family=scored[0].item.family,
        )


def _draws(scored: Sequence[Scored], resamples: int) -> np.ndarray:
    # a seed of each task's own: with a common one, tasks of equal size would go up and down together in a mean of them
    seed = zlib.crc32(scored[0].item.task.encode())
    return resampled_means([s.score.value for s in scored], [s.group for s in scored], resamples=resamples, seed=seed)


def _interval(draws: np.ndarray, n: int) -> tuple[float, float]:
    """Percentiles of the draws; Wilson's interval where all scores are alike, of which a bootstrap learns nothing."""
    return wilson(float(draws[0]) * n, n) if np.ptp(draws) == 0 else interval(draws)


def _mean_row(name: str, rows: Sequence[Row], draws: np.ndarray) -> Row:
    """Unweighted mean of rows; `draws` are their resampled means, averaged."""
    low, high = _interval(draws, sum(row.n for row in rows))
    chances = [row.chance for row in rows if row.chance is not None]

    def mean(values: Iterable[float]) -> float:
        return float(np.mean(list(values)))

    return Row(
        name=name,
        levels=tuple(sorted({level for row in rows for level in row.levels})),
        n=sum(row.n for row in rows),
        score=mean(row.score for row in rows),
        low=low,
        high=high,
        majority=mean(row.majority for row in rows),
        chance=mean(chances) if len(chances) == len(rows) else None,
        unparsed=sum(row.unparsed * row.n for row in rows) / sum(row.n for row in rows),
        tasks=len(rows),
        detail={
            key: mean(row.detail[key] for row in rows) for key in rows[0].detail if all(key in r.detail for r in rows)
        },
    )


def _grouped(scored: Iterable[Scored], key: Callable[[Scored], Any]) -> dict[Any, list[Scored]]:
    groups: dict[Any, list[Scored]] = {}
    for one in scored:
        groups.setdefault(key(one), []).append(one)
    return groups
