"""One evaluation from a model and a choice of benchmarks to a table, in a directory that can be continued."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from gnomon.eval import runner
from gnomon.eval.benchmark import Benchmark, Row, Scored
from gnomon.eval.cost import Cost, peak_memory, summarise
from gnomon.eval.progress import progress
from gnomon.eval.record import SUMMARY, Journal, digest, write_json
from gnomon.eval.session import Loaded, identity, surroundings


@dataclass(frozen=True)
class Result:
    """What an evaluation found. `scored` is in the order of scores.jsonl."""

    folder: Path
    rows: list[Row]
    scored: list[Scored]
    protocols: dict[str, str]
    cost: Cost
    truncated: float
    memory: int | None = None

    def as_dict(self) -> dict[str, Any]:
        return {
            "protocols": self.protocols,
            "rows": [asdict(row) for row in self.rows],
            "cost": asdict(self.cost),
            "truncated": self.truncated,
            "peak_memory": self.memory,
        }


def default_folder(loaded: Loaded, who: dict[str, Any]) -> Path:
    """The same for the same model and settings, so that repeating a command continues it."""
    return Path("runs") / "eval" / f"{loaded.name}-{digest(who)[:8]}"


def evaluate(
    loaded: Loaded,
    benchmarks: Sequence[Benchmark],
    *,
    out: Path | None = None,
    batch_size: int = 16,
    limit: int | None = None,
    max_new_tokens: int | None = None,
    fresh: bool = False,
    by_level: bool = False,
) -> Result:
    """Answer what is not answered yet, score all that is, write and return the table."""
    who = identity(loaded, {b.name: b.settings() for b in benchmarks}, max_new_tokens=max_new_tokens)
    session = surroundings(loaded, batch_size=batch_size, limit=limit)
    journal = Journal.open(out or default_folder(loaded, who), identity=who, session=session, fresh=fresh)
    answer = runner.answerer(loaded.model, loaded.processor)
    for benchmark in benchmarks:
        with progress(benchmark.name, benchmark.count(limit)) as advance:
            runner.run(
                benchmark,
                journal,
                loaded.processor,
                answer,
                batch_size=batch_size,
                limit=limit,
                max_new_tokens=max_new_tokens,
                advance=advance,
            )
    result = replace(results(journal, benchmarks, by_level=by_level), memory=peak_memory(loaded.device))
    runner.write_scores(journal, result.scored)
    write_json(journal.folder / SUMMARY, result.as_dict())
    return result


def results(journal: Journal, benchmarks: Sequence[Benchmark], *, by_level: bool = False) -> Result:
    """The table of what a journal holds, from the raw texts."""
    rows, scored = [], []
    for benchmark in benchmarks:
        found = runner.score(journal, benchmark)
        rows += benchmark.summary(found, by_level=by_level)
        scored += found
    records = list(journal.records.values())
    return Result(
        folder=journal.folder,
        rows=rows,
        scored=scored,
        protocols={benchmark.name: benchmark.protocol for benchmark in benchmarks},
        cost=summarise(records),
        truncated=float(np.mean([record.finish == "length" for record in records])) if records else 0.0,
    )
