"""One evaluation from a model and a choice of benchmarks to a table, in a directory that can be continued."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from gnomon.eval import exchange, look, runner
from gnomon.eval.benchmark import Benchmark, Row, Scored
from gnomon.eval.compare import Compared, Run, side_by_side
from gnomon.eval.cost import Cost, peak_memory, summarise
from gnomon.eval.progress import progress
from gnomon.eval.record import REDUCED, SUMMARY, Journal, digest, write_json
from gnomon.eval.session import Loaded, identity, surroundings
from gnomon.vlm.reduction.base import TokenReducer


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
    compared: list[Compared] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        return {
            "protocols": self.protocols,
            "rows": [asdict(row) for row in self.rows],
            "cost": asdict(self.cost),
            "truncated": self.truncated,
            "peak_memory": self.memory,
        } | ({"compared": [asdict(one) for one in self.compared]} if self.compared else {})


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
    reductions: Mapping[str, Sequence[TokenReducer]] | None = None,
    geometry: Sequence[exchange.Mode] = (),
) -> Result:
    """Answer what is not answered yet, score all that is, write and return the table.

    reductions: further sets of token reducers by name, measured on the same items beside the model as it is; each has
    a directory of its own below the run's. geometry: likewise, with the geometry of other scenes, or none.
    """
    for mode in geometry:
        exchange.check(loaded.model, mode)
    for reducers in (reductions or {}).values():
        loaded.model.check(reducers)
    # before old answers are discarded: there may be too few scenes
    others = exchange.donors(benchmarks, loaded.processor) if "other" in geometry else ()
    settings = {b.name: b.settings() for b in benchmarks}
    who = identity(loaded, settings, max_new_tokens=max_new_tokens)
    session = surroundings(loaded, batch_size=batch_size, limit=limit)
    folder = out or default_folder(loaded, who)
    journal = Journal.open(folder, identity=who, session=session, fresh=fresh)
    own = list(loaded.model.reducers)
    further = {name: runner.Variant(reducers) for name, reducers in (reductions or {}).items()}
    further |= {f"geometry:{mode}": runner.Variant(own, mode) for mode in geometry}
    variants = {"as it is": runner.Variant(own), **further}
    journals = [journal]
    for name, variant in further.items():
        its = who | {"reduction": name, "reducers": [reducer.spec() for reducer in variant.reducers]}
        place = folder / REDUCED / re.sub(r"[^\w.=-]+", "-", name)
        journals.append(Journal.open(place, identity=its, session=session, fresh=fresh))
    answer = runner.answerer(loaded.model, loaded.processor, list(variants.values()), others)
    try:
        for benchmark in benchmarks:
            with progress(benchmark.name, benchmark.count(limit)) as advance:
                runner.run(
                    benchmark,
                    journals,
                    loaded.processor,
                    answer,
                    batch_size=batch_size,
                    limit=limit,
                    max_new_tokens=max_new_tokens,
                    advance=advance,
                )
    finally:
        loaded.model.reducers = own
    found = [results(each, benchmarks, by_level=by_level) for each in journals]
    for each, result in zip(journals, found):
        runner.write_scores(each, result.scored)
        write_json(each.folder / SUMMARY, result.as_dict())
    result = replace(found[0], memory=peak_memory(loaded.device))
    if further:
        runs = [Run(n, list(j.records.values()), r.scored) for n, j, r in zip(variants, journals, found)]
        result.compared.extend(side_by_side(runs))
    write_json(journal.folder / SUMMARY, result.as_dict())
    look.keep(loaded, benchmarks, journal, result.scored)
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
