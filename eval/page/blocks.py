"""Pieces of HTML that every section of the report is made of. All text is escaped here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape


def note(text: str) -> str:
    return f'<p class="note">{escape(text)}</p>'


def card(content: str, *, scroll: bool = False) -> str:
    """A framed box around HTML."""
    return f'<div class="card{" scroll" if scroll else ""}">{content}</div>'


def figures(facts: Iterable[tuple[str, str]]) -> str:
    """(name, value) as large numbers in a row."""
    boxes = (f'<div class="figure"><b>{escape(value)}</b><span>{escape(name)}</span></div>' for name, value in facts)
    return f'<div class="figures">{"".join(boxes)}</div>'


def facts(rows: Mapping[str, str]) -> str:
    """Names and values as a list of two columns."""
    items = (f"<dt>{escape(key)}</dt><dd>{escape(value)}</dd>" for key, value in rows.items())
    return f"<dl>{''.join(items)}</dl>"


def table(head: Sequence[str], lines: Iterable[tuple[Sequence[str], bool]]) -> str:
    """Lines are (cells, whether it is a mean)."""
    body = []
    for cells, mean in lines:
        style = ' class="mean"' if mean else ""
        body.append(f"<tr{style}>{''.join(f'<td>{escape(cell)}</td>' for cell in cells)}</tr>")
    top = "".join(f"<th>{escape(name)}</th>" for name in head)
    return f"<table><thead><tr>{top}</tr></thead><tbody>{''.join(body)}</tbody></table>"


def big(value: float) -> str:
    """12.3k, 4.5M."""
    for size, suffix in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.1f}{suffix}"
    return f"{value:.0f}"
