"""Which items of an evaluation are shown; the first ones stay the same however many that are."""

from __future__ import annotations

from collections.abc import Sequence

from gnomon.eval.benchmark import Scored


def choose(scored: Sequence[Scored], count: int) -> list[Scored]:
    """Items in turn from each task, and within a task from each level; the choice does not look at the scores."""
    tasks: dict[str, dict[int, list[Scored]]] = {}
    for one in scored:
        tasks.setdefault(one.item.task, {}).setdefault(one.item.level, []).append(one)
    chosen: list[Scored] = []
    turn = 0
    while len(chosen) < min(count, len(scored)):
        for number, levels in enumerate(tasks.values()):
            left = [levels[level] for level in sorted(levels) if levels[level]]
            if left and len(chosen) < count:
                # another level for each task, so that the first round already shows all of them
                chosen.append(left[(turn + number) % len(left)].pop(0))
        turn += 1
    return chosen
