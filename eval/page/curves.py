"""The numbers that training logged into its run directory, read for plotting."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

FILES = ("metrics.jsonl", "metrics.csv")

Series = tuple[list[float], list[float]]


def find(folder: Path) -> list[Path]:
    """The newest metrics file of each run directory in a folder, which may be one itself.

    A run may have another logger's table in folders below its own; that is the same run again.
    """
    held: dict[Path, list[Path]] = {}
    for name in FILES:
        for path in folder.rglob(name):
            held.setdefault(path.parent, []).append(path)
    _, table = FILES
    again = {
        place
        for place, paths in held.items()
        if all(path.name == table for path in paths) and any(above in held for above in place.parents)
    }
    return [max(held[place], key=lambda path: path.stat().st_mtime) for place in sorted(held) if place not in again]


def read(path: Path) -> dict[str, Series]:
    """Every column's finite numbers over the step. Stages count theirs anew; here each follows the one before."""
    columns: dict[str, Series] = {}
    stage, begun, last = None, 0.0, 0.0
    for number, row in enumerate(_rows(path)):
        if row.get("stage") != stage:
            stage, begun = row.get("stage"), last
        step = _float(row.get("step"))
        last = begun + (number if step is None else step)
        for name, text in row.items():
            value = _float(text)
            if name in ("step", "stage") or value is None:
                continue
            x, y = columns.setdefault(name, ([], []))
            x.append(last)
            y.append(value)
    return columns


def pick(columns: dict[str, Series], *names: str) -> Series | None:
    """The first column with one of these names, whatever comes before a slash: `train/loss` is `loss`."""
    for name in names:
        for column, series in columns.items():
            if column == name or column.split("/")[-1] == name:
                return series
    return None


def smooth(values: Sequence[float], *, weight: float) -> list[float]:
    """Exponential moving average without the pull of its first value (bias corrected, as in Adam)."""
    total, mass, out = 0.0, 0.0, []
    for value in values:
        total, mass = weight * total + (1 - weight) * value, weight * mass + (1 - weight)
        out.append(total / mass)
    return out


def thin(series: Series, *, most: int = 800) -> Series:
    """At most `most` points, evenly spaced, the last one kept."""
    x, y = series
    if len(x) <= most:
        return series
    keep = sorted({round(k * (len(x) - 1) / (most - 1)) for k in range(most)})
    return [x[k] for k in keep], [y[k] for k in keep]


def _rows(path: Path) -> Iterator[dict]:
    with path.open(encoding="utf-8", errors="replace", newline="") as file:
        if path.suffix == ".csv":
            yield from csv.DictReader(file)
            return
        for number, line in enumerate(file, 1):
            # the last line of a run that was killed may be half written
            if line.endswith("\n") and line.strip():
                yield _row(line, f"{path} line {number}")


def _row(line: str, where: str) -> dict:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise ValueError(f"{where} is damaged ({error}); delete the line") from error
    if not isinstance(row, dict):
        raise ValueError(f"{where} is {row!r} and no row of metrics; delete the line")
    return row


def _float(value: object) -> float | None:
    """A finite number, or None."""
    try:
        number = float(str(value))
    except ValueError:
        return None
    return number if math.isfinite(number) else None
