"""RunLog: every number of a run as metrics.jsonl and metrics.csv in its directory, whatever other loggers there are."""

from __future__ import annotations

import csv
import json
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities.rank_zero import rank_zero_only


class RunLog(Logger):
    """Appends; rows after the step that a run resumes from are dropped first, so that no step stands there twice."""

    def __init__(self, folder: Path, stage: str) -> None:
        super().__init__()
        self.lines, self.table, self.stage = folder / "metrics.jsonl", folder / "metrics.csv", stage
        self._columns: list[str] = []

    @property
    def name(self) -> str:
        return "gnomon"

    @property
    def version(self) -> str:
        return self.stage

    @rank_zero_only
    def rewind(self, step: int) -> None:
        """Forget what this stage logged after `step`."""
        if self.lines.is_file():
            rows = [row for row in read(self.lines) if row["stage"] != self.stage or row["step"] <= step]
            self.lines.write_text("".join(json.dumps(row) + "\n" for row in rows))
        self._write_table()

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        row = {"stage": self.stage, "step": step, **metrics}
        with self.lines.open("a") as file:
            file.write(json.dumps(row) + "\n")
        if set(row) <= set(self._columns):
            with self.table.open("a", newline="") as file:
                csv.DictWriter(file, self._columns).writerow(row)
        else:
            self._write_table()

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """The resolved configuration lies beside the log already."""

    def _write_table(self) -> None:
        rows = read(self.lines) if self.lines.is_file() else []
        self._columns = list(dict.fromkeys(key for row in rows for key in row))
        with self.table.open("w", newline="") as file:
            writer = csv.DictWriter(file, self._columns)
            writer.writeheader()
            writer.writerows(rows)


def read(lines: Path) -> list[dict[str, Any]]:
    """Rows of a metrics.jsonl; a line that a crash cut off is left out."""
    rows = []
    for line in lines.read_text().splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return rows
