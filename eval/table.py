"""Results as text: the table of an evaluation, in columns that fit a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from gnomon.eval.benchmark import Row
from gnomon.eval.cost import Cost

HEAD = ("task", "level", "n", "accuracy", "95 % interval", "majority", "chance", "unparsed", "official")


def cells(row: Row) -> tuple[str, ...]:
    """One row in the order of HEAD, in percent; `official` is the released scorer's number, where there is one."""
    return (
        f"mean of {row.tasks}: {row.name}" if row.tasks else row.name,
        levels(row.levels),
        str(row.n),
        percent(row.score),
        f"{percent(row.low)} to {percent(row.high)}",
        percent(row.majority),
        "" if row.chance is None else percent(row.chance),
        percent(row.unparsed),
        percent(row.detail["official"]) if "official" in row.detail else "",
    )


def with_interval(row: Row) -> str:
    return f"{percent(row.score)} ({percent(row.low)} to {percent(row.high)})"


def levels(values: Sequence[int]) -> str:
    """1-3 for 1, 2, 3; otherwise one by one."""
    if len(values) > 1 and list(values) == list(range(values[0], values[-1] + 1)):
        return f"{values[0]}-{values[-1]}"
    return ",".join(map(str, values))


def percent(share: float) -> str:
    return f"{100 * share:.1f}"


def text(rows: Sequence[Row]) -> str:
    return columns(HEAD, [(cells(row), bool(row.tasks)) for row in rows])


def columns(head: Sequence[str], body: Sequence[tuple[Sequence[str], bool]]) -> str:
    """Lines under a head, the first column to the left; a line marked true ends a block."""
    widths = [max(len(parts[k]) for parts in [head, *(parts for parts, _ in body)]) for k in range(len(head))]

    def line(parts: Sequence[str]) -> str:
        return "  ".join(
            [parts[0].ljust(widths[0]), *(part.rjust(width) for part, width in zip(parts[1:], widths[1:]))]
        ).rstrip()

    rule = "  ".join("-" * width for width in widths)
    out = [line(head), rule]
    for parts, ends in body:
        out.append(line(parts))
        if ends:
            out.append("")
    return "\n".join(out).rstrip()


def cost_line(cost: Cost, memory: int | None) -> str:
    parts = [
        f"{cost.items_per_second:.1f} items/s",
        f"{cost.prompt_tokens:.0f} prompt tokens an item ({cost.visual_tokens:.0f} visual)",
        f"{cost.generated_tokens:.1f} generated",
        f"{cost.decode_rate:.0f} tokens/s decoding",
    ]
    if memory is not None:
        parts.append(f"peak memory {memory / 2**20:.0f} MiB")
    return ", ".join(parts)
