"""The report's section on an evaluation: scores with baselines, diagrams with answers, and where it all came from."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from gnomon.eval import table
from gnomon.eval.benchmark import Benchmark, Row
from gnomon.eval.cost import summarise
from gnomon.eval.evaluate import Result, results
from gnomon.eval.page import blocks, svg
from gnomon.eval.page.cards import cards, short
from gnomon.eval.record import SUMMARY, Journal, Record, read_header, read_items
from gnomon.vlm.part import build

LEGEND = (
    '<ul class="legend"><li><i class="k-dot"></i>score</li><li><i class="k-span"></i>95 % interval</li>'
    '<li><i class="k-majority"></i>best constant answer</li><li><i class="k-chance"></i>blind guess</li></ul>'
)
EMPTY = "a header but no answers yet; run gnomon evaluate to its end first"
STANDINS = "Rows named standin/ are procedural: they compare models with each other, never with published scores."


@dataclass(frozen=True)
class Evaluation:
    """What one evaluation directory holds, scored anew from the raw texts.

    stored   why it was not: a benchmark cannot be made again, so the result is the stored table, and no item is scored
    """

    folder: Path
    header: dict[str, Any]
    benchmarks: dict[str, Benchmark]
    records: list[Record]
    result: Result
    stored: str = ""

    @property
    def model(self) -> str:
        return self.header["identity"].get("model", self.folder.name)


def read(folder: Path) -> Evaluation:
    header, records = read_header(folder), read_items(folder)
    parts = ("class_path", "init_args")
    settings = header["identity"]["benchmarks"]
    try:
        made = {name: build({key: spec[key] for key in parts}, Benchmark) for name, spec in settings.items()}
    except (ValueError, OSError) as error:
        return Evaluation(folder, header, {}, records, _stored(folder, records), stored=str(error))
    journal = Journal(folder, header, {record.key: record for record in records})
    return Evaluation(folder, header, made, records, results(journal, list(made.values()), by_level=True))


def _stored(folder: Path, records: list[Record]) -> Result:
    """The table that the evaluation wrote; one without rows where it wrote none."""
    try:
        summary = json.loads((folder / SUMMARY).read_text(encoding="utf-8"))
        rows = [Row(**{**row, "levels": tuple(row["levels"])}) for row in summary["rows"]]
        protocols, truncated = summary["protocols"], summary["truncated"]
    except (OSError, ValueError, KeyError, TypeError):
        rows, protocols, truncated = [], {}, 0.0
    return Result(folder, rows, [], protocols, summarise(records), truncated)


def section(found: Evaluation, examples: int) -> str:
    result = found.result
    head = f"<h2>Evaluation of {escape(found.model)}</h2>"
    if not found.records:
        return head + blocks.note(f"{found.folder} has {EMPTY}.")
    if found.stored:
        there = "this is the table as it was stored" if result.rows else "and no table is stored"
        head += blocks.note(f"The questions cannot be made again, {there}: {found.stored}")
        if not result.rows:
            return head
    rows = _whole(result.rows)
    means = [row for row in rows if row.tasks] or rows
    facts = [(_plain(row.name), f"{table.percent(row.score)} %") for row in means[-5:]]
    facts += [("items", f"{len(found.records):,}"), ("items/s", f"{result.cost.items_per_second:.1f}")]
    cost = (
        f"{table.cost_line(result.cost, None)}; {result.truncated:.1%} of the answers were cut at the longest length."
    )
    return "".join(
        [
            head,
            *(blocks.note(f"{name}: {text}.") for name, text in result.protocols.items()),
            blocks.figures(facts),
            blocks.card(LEGEND + svg.interval_chart(_bars(rows))),
            blocks.card(blocks.table(table.HEAD, [(table.cells(row), bool(row.tasks)) for row in rows]), scroll=True),
            blocks.note(f"{cost} {STANDINS}"),
            _by_level(result.rows),
            cards(result.scored, found.records, found.benchmarks, examples),
            "<h3>Provenance</h3>",
            blocks.card(blocks.facts(_provenance(found))),
        ]
    )


def _whole(rows: Sequence[Row]) -> list[Row]:
    """The table without the rows of single levels that are part of another row."""
    several = {row.name for row in rows if len(row.levels) > 1}
    return [row for row in rows if row.tasks or len(row.levels) > 1 or row.name not in several]


def _bars(rows: Sequence[Row]) -> list[svg.Bar]:
    """The overall mean, then each family: its mean, and its tasks below it. A task alone in its family leads it."""
    means = {row.name: row for row in rows if row.tasks}
    families: dict[str, list[Row]] = {}
    for row in rows:
        if not row.tasks:
            families.setdefault(row.family or row.name.rpartition("/")[0], []).append(row)
    bars = [_bar(row, name, strong=True) for name, row in means.items() if name not in families]
    for family, members in families.items():
        if family in means:
            bars.append(_bar(means[family], family, strong=True))
            bars += [_bar(row, short(row.name), strong=False) for row in members]
        else:
            bars += [_bar(row, family, strong=True) for row in members]
    return bars


def _bar(row: Row, name: str, *, strong: bool) -> svg.Bar:
    return svg.Bar(name, row.score, row.low, row.high, row.majority, row.chance, strong=strong)


def _by_level(rows: Sequence[Row]) -> str:
    """Scores with their intervals, a line per task and a column per level."""
    single = {(row.name, row.levels[0]): row for row in rows if not row.tasks and len(row.levels) == 1}
    levels = sorted({level for _, level in single})
    if len(levels) < 2:
        return ""
    lines = []
    for name in dict.fromkeys(name for name, _ in single):
        found = [single.get((name, level)) for level in levels]
        lines.append(([name, *(table.with_interval(row) if row else "" for row in found)], False))
    body = blocks.table(["task", *(f"level {level}" for level in levels)], lines)
    return f"<details><summary>By level</summary>{blocks.card(body, scroll=True)}</details>"


def _provenance(found: Evaluation) -> dict[str, str]:
    identity, sessions = found.header["identity"], found.header["sessions"]
    last = sessions[-1]
    rows = {
        "model": f"{found.model}, {last['parameters']:,} parameters",
        "model hash": identity["model_sha256"],
        "device": f"{identity['device']} ({last['device_name']}), {identity['dtype']}, attention {last['attention']}",
        "decoding": ", ".join(f"{key} {value}" for key, value in identity["decode"].items()),
        "sessions": f"{len(sessions)}, the last one {last['started']}, batch size {last['batch_size']}",
        "versions": ", ".join(f"{name} {version}" for name, version in last["versions"].items()),
        "directory": str(found.folder),
    }
    return rows | {name: json.dumps(spec, sort_keys=True) for name, spec in identity["benchmarks"].items()}


def _plain(name: str) -> str:
    return f"{short(name)} (stand-in)" if name.startswith("standin/") else name
