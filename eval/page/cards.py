"""Diagrams on a page: which items are shown, and each with its picture, its question and what was answered."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from html import escape

import numpy as np
from PIL import Image

from gnomon.data.image import load
from gnomon.eval.benchmark import Benchmark, Scored
from gnomon.eval.page.blocks import note
from gnomon.eval.record import Record
from gnomon.eval.runner import picture
from gnomon.eval.shown import choose

LONGEST = 400
"""Characters of an answer that are shown."""


def cards(scored: Sequence[Scored], records: Sequence[Record], benchmarks: dict[str, Benchmark], count: int) -> str:
    """So many items of all tasks and levels; nothing when none are asked for."""
    raw = {(record.task, record.sample): record for record in records}
    chosen = choose(scored, count)
    if not chosen:
        return ""
    right = sum(one.score.value == 1 for one in chosen)
    shown = "".join(_card(one, raw[one.item.task, one.item.id], benchmarks) for one in chosen)
    text = f"Spread evenly over tasks and levels, not picked by score: {right} of these are right."
    return f'<h3>{len(chosen)} items</h3>{note(text)}<div class="grid-cards">{shown}</div>'


def _card(one: Scored, record: Record, benchmarks: dict[str, Benchmark]) -> str:
    known = {1.0: ("right", "✓ right"), 0.0: ("wrong", "✗ wrong")}
    kind, word = known.get(one.score.value, ("part", f"{one.score.value:.0%}"))
    answer = escape(record.raw.strip()[:LONGEST]) or '<span class="empty">nothing</span>'
    return (
        f'<article class="item">{_image(one, record, benchmarks[record.benchmark])}<div class="body">'
        f'<div class="top"><span class="chip">{escape(short(one.item.task))} · L{one.item.level}</span>'
        f'<span class="mark {kind}">{word}</span></div><p class="question">{escape(one.item.question)}</p>'
        f"<dl><dt>truth</dt><dd>{escape(one.item.target)}</dd><dt>model</dt><dd>{answer}</dd></dl></div></article>"
    )


def _image(one: Scored, record: Record, benchmark: Benchmark) -> str:
    images = pictures(one, record, benchmark)
    if isinstance(images, str):
        return f'<div class="no-image">{images}</div>'
    buffer = io.BytesIO()
    Image.fromarray(images[0]).save(buffer, "PNG", optimize=True)
    data = base64.b64encode(buffer.getvalue()).decode()
    return f'<img src="data:image/png;base64,{data}" alt="{escape(one.item.question, quote=True)}">'


def pictures(one: Scored, record: Record, benchmark: Benchmark) -> list[np.ndarray] | str:
    """The pictures made again, if they still are those that were asked about; else what stands in their place."""
    if not record.image_sha256:
        return "text only"
    try:
        images = [load(image) for image in benchmark.sample(one.item).images]
    except (IndexError, ValueError, OSError):
        # a user's file may be shorter by now, or moved
        return "the picture is no longer there"
    if [picture(pixels) for pixels in images] != record.image_sha256:
        return "this version draws another picture"
    return images


def short(name: str) -> str:
    """The last part of a row's name, in words."""
    return name.split("/")[-1].replace("_", " ")
