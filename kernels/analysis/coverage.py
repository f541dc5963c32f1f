"""Which operator supports what, read from the records: the four patterns of CAB, masks, states, packing.

Paper:   CAB: Comprehensive Attention Benchmarking on Long Sequence Modeling. arXiv:2210.07661
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass

from gnomon.kernels.members import Member, members
from gnomon.kernels.op import PATTERNS


@dataclass(frozen=True)
class Row:
    """One operator. mask: any rule, or at most causal, or none; state: fixed, growing or none."""

    family: str
    name: str
    patterns: frozenset[str]
    mask: str
    state: str
    packed: bool
    grid: bool
    impls: tuple[str, ...]


def coverage(found: Sequence[Member]) -> list[Row]:
    rows = []
    for member in found:
        op = member.op
        causal = "causal" if op.patterns & {"CS", "CC"} else "none"
        state = "growing" if op.cache else "fixed" if op.state is not None else "none"
        packed = "cu_seqlens" in inspect.signature(member.function).parameters
        mask = "any" if op.masks else causal
        rows.append(Row(member.family, op.name, op.patterns, mask, state, packed, op.grid, tuple(op.impls)))
    return rows


def markdown(rows: Sequence[Row]) -> str:
    head = ["operator", *PATTERNS, "mask", "state", "packed", "grid", "implementations"]
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    for row in rows:
        cells = [f"{row.family}/{row.name}", *("yes" if p in row.patterns else "-" for p in PATTERNS)]
        cells += [row.mask, row.state, *("yes" if x else "-" for x in (row.packed, row.grid)), ", ".join(row.impls)]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(markdown(coverage(members())))
