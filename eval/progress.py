"""Progress of long work: a bar with rate and time left on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

QUIET = 30.0
"""Seconds between lines when the output is no terminal."""


class Advance(Protocol):
    def __call__(self, count: int, /, *, fresh: bool = True) -> None:
        """So many more items are done; not `fresh`: they were there before and say nothing about the speed."""


class Pace:
    """Counts items and predicts the rest from the fresh ones."""

    def __init__(self, total: int) -> None:
        self.total, self.done, self.fresh, self.start = total, 0, 0, time.monotonic()

    def add(self, count: int, fresh: bool) -> None:
        self.done += count
        self.fresh += count if fresh else 0

    def __str__(self) -> str:
        if not self.fresh:
            return ""
        rate = self.fresh / max(time.monotonic() - self.start, 1e-9)
        return f"{rate:.1f} items/s, {clock((self.total - self.done) / rate)} left"


@contextmanager
def progress(title: str, total: int) -> Iterator[Advance]:
    """Yields a function to call with the number of items just finished; everything goes to stderr."""
    pace = Pace(total)
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

        columns = (TextColumn(title), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[pace]}"))
        with Progress(*columns, console=Console(stderr=True)) as bar:
            task = bar.add_task(title, total=total, pace="")

            def advance(count: int, /, *, fresh: bool = True) -> None:
                pace.add(count, fresh)
                bar.update(task, completed=pace.done, pace=str(pace))

            yield advance
        return

    said = pace.start

    def note(count: int, /, *, fresh: bool = True) -> None:
        nonlocal said
        pace.add(count, fresh)
        if time.monotonic() - said >= QUIET:
            said = time.monotonic()
            print(f"{title}: {pace.done}/{total} items, {pace}", file=sys.stderr, flush=True)

    yield note


def clock(seconds: float) -> str:
    """12s, 3m05s, 2h07m."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
