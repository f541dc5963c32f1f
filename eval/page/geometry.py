"""The report's section on geometry: views of a scene, what was predicted of it, and where the fusion's gate opens."""

from __future__ import annotations

import math
from html import escape

import numpy as np

from gnomon.eval.page import blocks, clouds
from gnomon.eval.page.evaluation import Evaluation
from gnomon.eval.page.raster import INFERNO, VIRIDIS, Scale, heat, picture, plane
from gnomon.eval.shown import choose
from gnomon.eval.sight import Facts, Sight, path_of, read

# The colours of a gate span at least this much, so that one that is even looks even.
_LEAST_SPAN = 0.1


def section(found: Evaluation, examples: int) -> str:
    """Of those items that the page shows anyway; empty where nothing was kept."""
    answers = {(record.task, record.sample): record.raw.strip() for record in found.records}
    panels = []
    for one in choose(found.result.scored, examples):
        path = path_of(found.folder, one.item.task, one.item.id)
        if path.exists():
            answer = answers[one.item.task, one.item.id] or "nothing"
            facts = {"question": one.item.question, "truth": one.item.target, "model": answer}
            panels.append(panel(read(path), one.item.id, facts))
    if not panels:
        return ""
    text = (
        "Depth is along z, points are in the first camera's frame: x to the right, y down, z forward. A prediction up "
        "to scale is brought to the truth by one factor for all views of a scene, the ratio of medians, and errors are "
        "what is left then. Views that are images are what the vision encoder sees, too; its tokens are not reduced "
        "here."
    )
    return f"<h2>Geometry, as {escape(found.model)} sees it</h2>{blocks.note(text)}{''.join(panels)}"


def panel(seen: Sight, name: str, said: dict[str, str]) -> str:
    """One scene; said: what was asked about it and so on."""
    facts = seen.facts
    lacking = ["depth"] if seen.depth is None else []
    lacking += ["points"] if seen.cloud is None and not facts.adrift else []
    shown = [
        f'<article class="card scene"><div><span class="chip">{escape(name)}</span></div>',
        blocks.facts(said | {"geometry": f"{facts.encoder}, {facts.views} views, fused by {facts.fusion}"}),
        blocks.figures(_figures(seen)),
        _views(seen),
        blocks.note(f"{facts.encoder} predicts no {' and no '.join(lacking)}.") if lacking else "",
        blocks.note("No camera is placed among the predicted points, so they are not shown.") if facts.adrift else "",
        _clouds(seen),
        _gates(seen),
        "</article>",
    ]
    return "".join(shown)


def _figures(seen: Sight) -> list[tuple[str, str]]:
    opened = float(np.mean([gate.mean(dtype=float) for gate in seen.gates.values()])) if seen.gates else None
    named = {
        "AbsRel of depth": seen.facts.abs_rel,
        "relative error of points": seen.facts.error,
        "mean openness of the gate": opened,
    }
    return [(name, _number(value)) for name, value in named.items() if value is not None]


def _views(seen: Sight) -> str:
    """A column per view: its picture, predicted and true depth in one scale, and how far they are apart."""
    count, facts = len(seen.pixels), seen.facts
    head = [f"view {k}{', an image' if k in facts.shown else ''}" for k in range(count)]
    rows = [("picture", [picture(view, f"view {k}") for k, view in enumerate(seen.pixels)])]
    planes = [("predicted depth", seen.depth), ("true depth", seen.true_depth)]
    known = [values for _, values in planes if values is not None]
    legend = ""
    if known:
        # the truth decides about the colours, where there is one
        scale = _depth_scale(known[-1])
        legend = scale.legend(_depth_text(facts, seen.true_depth is not None, predicted=seen.depth is not None))
        rows += [
            (name, [plane(view, scale, f"{name} of view {k}") for k, view in enumerate(values)])
            for name, values in planes
            if values is not None
        ]
    if facts.by_view:
        rows.append(("AbsRel", [_number(value) for value in facts.by_view[:count]]))
    body = "".join(
        f'<tr><th scope="row">{name}</th>{"".join(f"<td>{cell}</td>" for cell in cells)}</tr>' for name, cells in rows
    )
    top = "".join(f'<th scope="col">{name}</th>' for name in head)
    more = f"The first {count} of {facts.views} views are shown." if count < facts.views else ""
    table = f'<table class="views"><thead><tr><td></td>{top}</tr></thead><tbody>{body}</tbody></table>'
    return f'<div class="scroll">{table}</div>{legend}{blocks.note(more) if more else ""}'


def _depth_scale(depth: np.ndarray) -> Scale:
    """Near is light; the farthest and the nearest hundredth do not stretch the colours."""
    there = depth[np.isfinite(depth) & (depth != 0)].astype(float)
    low, high = np.percentile(there, [1, 99]) if len(there) else (0.0, 1.0)
    return Scale(VIRIDIS, float(low), float(high), backwards=True)


def _depth_text(facts: Facts, truth: bool, *, predicted: bool) -> str:
    if not truth:
        return f"depth, {'in metres' if facts.metric else 'up to scale'}; the true depth is not known"
    if not predicted:
        return "depth, in the unit of the truth; clear where it is not known"
    if facts.factor is None:
        return "depth; the prediction is metric and stays as it is"
    if math.isnan(facts.factor):
        return "depth, in the unit of the truth; no factor brings the prediction to it"
    return f"depth, in the unit of the truth; the prediction times {facts.factor:.3g}, which makes the medians equal"


def _clouds(seen: Sight) -> str:
    both = ("predicted", seen.cloud), ("true", seen.true_cloud)
    named = [(name, cloud) for name, cloud in both if cloud is not None and len(cloud.points)]
    if not named:
        return ""
    facts, text = seen.facts, []
    if facts.point_factor is not None and not math.isnan(facts.point_factor):
        text.append(f"Predicted points times {facts.point_factor:.3g}, which makes the median distances equal.")
    if facts.lent:
        text.append("Each camera's points came together by the true cameras: none are predicted.")
    if seen.true_depth is not None and seen.cloud is not None:
        text.append("Shown are the pixels whose true depth is known.")
    return f"<h4>Points</h4>{blocks.note(' '.join(text)) if text else ''}{clouds.charts(named)}"


def _gates(seen: Sight) -> str:
    gates = {view: gate.astype(float) for view, gate in seen.gates.items() if view < len(seen.pixels)}
    if not gates:
        return blocks.note(f"{seen.facts.fusion} has no gate, or no image shows one of these views.")
    low, high = min(gate.min() for gate in gates.values()), max(gate.max() for gate in gates.values())
    room = max(0.0, _LEAST_SPAN - (high - low)) / 2
    low = min(max(0.0, low - room), 1 - _LEAST_SPAN)
    scale = Scale(INFERNO, low, max(low + _LEAST_SPAN, min(1.0, high + room)))
    figures = "".join(
        f"<figure>{heat(seen.pixels[view], gate, scale, f'openness of the gate over view {view}')}"
        f"<figcaption>view {view}: mean {gate.mean():.3f}, least {gate.min():.3f}, most {gate.max():.3f}</figcaption>"
        "</figure>"
        for view, gate in gates.items()
    )
    text = "share of a visual token that comes from geometry: 0 is closed, 1 is open"
    return f'<h4>Where the gate opens</h4><div class="gates">{figures}<div>{scale.legend(text)}</div></div>'


def _number(value: float) -> str:
    return "unknown" if math.isnan(value) else "infinite" if math.isinf(value) else f"{value:.3f}"
