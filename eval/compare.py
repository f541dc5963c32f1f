"""Two runs on the same items: the difference of their scores with an interval of its own, and what each one costs."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from gnomon.eval.benchmark import Scored
from gnomon.eval.cost import Cost, summarise
from gnomon.eval.metrics import interval, mcnemar, resampled_means
from gnomon.eval.record import Record


@dataclass(frozen=True)
class Difference:
    """Score of one run minus that of the other, on the items that both have.

    score, points, low, high   means over families of means over tasks, as in the table; the interval is of `points`
    p                          exact McNemar, over the items that just one of the two has fully right
    """

    n: int
    score: float
    points: float
    low: float
    high: float
    p: float


@dataclass(frozen=True)
class Compared:
    """A variant beside the run that it is compared with; of the run itself, `difference` is to itself.

    kept         share of the visual tokens that the last layer still has
    milliseconds per item: encoder, choice and prefill, then decoding
    """

    name: str
    kept: float
    difference: Difference
    cost: Cost
    prefill_ms: float
    decode_ms: float

    @property
    def ms(self) -> float:
        return self.prefill_ms + self.decode_ms


class Run(NamedTuple):
    """What is compared: the records of a run and their scores."""

    name: str
    records: Sequence[Record]
    scored: Sequence[Scored]

    def items(self) -> set[tuple[str, str]]:
        return {(s.item.task, s.item.id) for s in self.scored}

    def of(self, items: set[tuple[str, str]]) -> Run:
        """What it has of these items."""
        return Run(
            self.name,
            [r for r in self.records if (r.task, r.sample) in items],
            [s for s in self.scored if (s.item.task, s.item.id) in items],
        )


def side_by_side(runs: Sequence[Run]) -> list[Compared]:
    """The first run and what is compared with it, all on the items that every one of them has."""
    common = set.intersection(*(run.items() for run in runs))
    base, *others = (run.of(common) for run in runs)
    return [_compared(run, base) for run in (base, *others)]


def difference(scored: Sequence[Scored], against: Sequence[Scored], *, resamples: int = 10_000) -> Difference:
    """Paired over items and resampled over images, so that what is hard for both does not widen the interval."""
    other = {(s.item.task, s.item.id): s for s in against}
    pairs = [(s, other[s.item.task, s.item.id]) for s in scored if (s.item.task, s.item.id) in other]
    if not pairs:
        raise ValueError("the two runs have no item in common; evaluate both with the same options")
    families: dict[str, dict[str, list[tuple[Scored, Scored]]]] = {}
    for pair in pairs:
        families.setdefault(pair[0].item.family, {}).setdefault(pair[0].item.task, []).append(pair)
    score = points = 0.0
    draws: np.ndarray | float = 0.0
    for tasks in families.values():
        for task, members in tasks.items():
            share = 1 / len(families) / len(tasks)
            gains = [mine.score.value - theirs.score.value for mine, theirs in members]
            groups = [mine.group for mine, _ in members]
            seed = zlib.crc32(task.encode())
            score += share * float(np.mean([mine.score.value for mine, _ in members]))
            points += share * float(np.mean(gains))
            draws = draws + share * resampled_means(gains, groups, resamples=resamples, seed=seed)
    low, high = interval(np.asarray(draws))
    first = sum(mine.score.value == 1 and theirs.score.value < 1 for mine, theirs in pairs)
    second = sum(mine.score.value < 1 and theirs.score.value == 1 for mine, theirs in pairs)
    return Difference(len(pairs), score, points, low, high, mcnemar(first, second))


def _compared(run: Run, base: Run) -> Compared:
    records = run.records
    visual = sum(record.visual_tokens for record in records)
    kept = sum(record.visual_tokens if record.visual_kept is None else record.visual_kept for record in records)
    count = max(1, len(records))
    return Compared(
        name=run.name,
        kept=kept / visual if visual else 1.0,
        difference=difference(run.scored, base.scored),
        cost=summarise(records),
        prefill_ms=1000 * sum(record.seconds_prefill for record in records) / count,
        decode_ms=1000 * sum(record.seconds_decode for record in records) / count,
    )


HEAD = ("variant", "n", "kept", "score", "difference", "95 % interval", "p", "prefill ms", "decode ms", "speed-up")


def cells(one: Compared, base: Compared) -> tuple[str, ...]:
    """One row in the order of HEAD; speed-up is of the whole answer, against the first row."""
    d = one.difference
    plain = one is base
    return (
        one.name,
        str(d.n),
        f"{100 * one.kept:.1f} %",
        f"{100 * d.score:.1f}",
        "" if plain else f"{100 * d.points:+.1f}",
        "" if plain else f"{100 * d.low:+.1f} to {100 * d.high:+.1f}",
        "" if plain else f"{d.p:.2g}",
        f"{one.prefill_ms:.2f}",
        f"{one.decode_ms:.2f}",
        f"{base.ms / one.ms:.2f}" if one.ms else "",
    )
