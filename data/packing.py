"""Packing: several short examples in one row, each its own document.

Best-fit decreasing over the examples at hand: a pure function, so a resumed run packs as the first one did.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence

from gnomon.data.example import Example


def plan(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Which example goes into which row: longest first, each into the fullest row that still holds it."""
    if any(length > capacity for length in lengths):
        raise ValueError(f"an example of {max(lengths)} tokens does not fit a row of {capacity}; raise pack")
    rows: list[list[int]] = []
    # (room left, row), ascending, so that the tightest fit is the first that is large enough
    rooms: list[tuple[int, int]] = []
    for i in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        at = bisect_left(rooms, (lengths[i], -1))
        if at == len(rooms):
            room, row = capacity, len(rows)
            rows.append([])
        else:
            room, row = rooms.pop(at)
        rows[row].append(i)
        insort(rooms, (room - lengths[i], row))
    return rows


def pack(examples: Sequence[Example], capacity: int) -> list[list[Example]]:
    """Rows of examples with at most `capacity` tokens each, for `collate_rows`."""
    return [[examples[i] for i in row] for row in plan([len(example) for example in examples], capacity)]


def utilisation(rows: Sequence[Sequence[Example]], capacity: int) -> float:
    """Share of the rows' places that hold a token."""
    return sum(len(example) for row in rows for example in row) / (capacity * len(rows))
