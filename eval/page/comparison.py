"""The report's section on variants of a model: what accuracy costs in time, and which tokens are kept."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from html import escape

import numpy as np
from PIL import Image

from gnomon.eval import compare
from gnomon.eval.compare import Run
from gnomon.eval.page import blocks, svg
from gnomon.eval.page.cards import pictures
from gnomon.eval.page.evaluation import Evaluation
from gnomon.eval.record import Record
from gnomon.eval.runner import kept_cells
from gnomon.eval.shown import choose

# Of a variant's identity, what the run that it is of does not have.
_REDUCTION = ("reduction", "reducers")

SHADE = 0.22
"""How much of a cell's contrast is left where its token was dropped."""


def section(base: Evaluation, variants: Sequence[Evaluation], examples: int) -> str:
    """Empty where nothing was compared."""
    notes = [text for found in variants if (text := _left_out(found, base))]
    variants = [found for found in variants if not _left_out(found, base)]
    if not variants:
        return "".join(map(blocks.note, notes))
    rows = compare.side_by_side([_run(found) for found in (base, *variants)])
    points = [svg.Point(one.name, one.ms, one.difference.score, first=not k) for k, one in enumerate(rows)]
    body = blocks.table(compare.HEAD, [(compare.cells(one, rows[0]), not k) for k, one in enumerate(rows)])
    return "".join(
        [
            f"<h2>Variants of {escape(base.model)}</h2>",
            blocks.note(
                "The same items with fewer visual tokens, or with other geometry. Differences are paired over items, "
                "their intervals resampled over images; time is measured and not estimated. The line joins what "
                "nothing else beats in both."
            ),
            *map(blocks.note, notes),
            blocks.card(svg.scatter_chart(points, x_label="milliseconds per item", y_label="score")),
            blocks.card(body, scroll=True),
            _kept(base, variants, examples),
        ]
    )


def _run(found: Evaluation) -> Run:
    return Run(found.header["identity"].get("reduction", "as it is"), found.records, found.result.scored)


def _left_out(found: Evaluation, base: Evaluation) -> str:
    """Why a variant cannot stand beside this run; empty where it can."""
    own, its = ({k: v for k, v in e.header["identity"].items() if k not in _REDUCTION} for e in (base, found))
    name = f"The variant {_run(found).name} is left out"
    if other := sorted(key for key in own.keys() | its.keys() if own.get(key) != its.get(key)):
        return f"{name}: it was made with other {', '.join(other)} than the run beside it."
    return "" if _run(found).items() & _run(base).items() else f"{name}: it has no scored item in common with the run."


def _kept(base: Evaluation, variants: Sequence[Evaluation], examples: int) -> str:
    """A row per item: its image, then what is left of it with each reduction."""
    chosen = [one for one in choose(base.result.scored, examples) if not one.item.meta.get("views")][:examples]
    records = [{(r.task, r.sample): r for r in found.records} for found in variants]
    scores = [{(s.item.task, s.item.id): s.score.value for s in found.result.scored} for found in variants]
    own = {(r.task, r.sample): r for r in base.records}
    lines = []
    for one in chosen:
        key = (one.item.task, one.item.id)
        images = pictures(one, own[key], base.benchmarks[own[key].benchmark])
        if isinstance(images, str):
            continue
        shown = [_figure(images[0], one.item.question, own[key].raw, one.score.value)]
        for found, value, variant in zip(records, scores, variants):
            if key in found and found[key].kept:
                name = variant.header["identity"]["reduction"]
                shown.append(_figure(_shaded(images[0], found[key]), name, found[key].raw, value[key]))
        lines.append(f'<div class="kept">{"".join(shown)}</div>')
    if not lines:
        return ""
    text = "Faded cells have no token of their own at the last layer. Below each picture, what the model answered."
    return f"<h3>What is kept</h3>{blocks.note(text)}{''.join(lines)}"


def _shaded(pixels: np.ndarray, record: Record) -> np.ndarray:
    kept = kept_cells(record.kept[0])
    rows = np.arange(pixels.shape[0]) * kept.shape[0] // pixels.shape[0]
    columns = np.arange(pixels.shape[1]) * kept.shape[1] // pixels.shape[1]
    share = np.where(kept[rows][:, columns], 1.0, SHADE)[..., None]
    return (pixels * share + 160 * (1 - share)).astype(np.uint8)


def _figure(pixels: np.ndarray, name: str, answer: str, score: float) -> str:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", optimize=True)
    data = base64.b64encode(buffer.getvalue()).decode()
    kind = {1.0: "right", 0.0: "wrong"}.get(score, "part")
    return (
        f'<figure><img src="data:image/png;base64,{data}" alt="{escape(name, quote=True)}">'
        f'<figcaption>{escape(name[:90])}<br><span class="mark {kind}">{escape(answer.strip()[:40]) or "nothing"}'
        "</span>"
        "</figcaption></figure>"
    )
