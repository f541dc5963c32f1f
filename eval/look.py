"""Look again at a few items of an evaluation: what the geometry encoder predicts, and where the fusion's gate opens.

Shapes: S views, H,W pixels, h,w visual tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from gnomon.data.collate import collate
from gnomon.data.example import Example
from gnomon.eval.benchmark import Benchmark, Scored
from gnomon.eval.geometry.scene import Prediction, Truth, depth_result, points_result
from gnomon.eval.record import Journal
from gnomon.eval.session import Loaded
from gnomon.eval.shown import choose
from gnomon.eval.sight import Cloud, Facts, Sight, path_of, write
from gnomon.vlm.geometry.base import GeometryEncoder, GeometryInput
from gnomon.vlm.layout import Batch
from gnomon.vlm.model import VLM
from gnomon.vlm.scenery import dtype_of

KEPT, SOUGHT = 4, 20
"""Items of an evaluation whose geometry is kept, and among how many of those that the page shows they are sought."""

VIEWS, SIDE, POINTS = 8, 160, 6000
"""Most views, pixels of a side and points of a cloud that are kept of an item."""


def keep(loaded: Loaded, benchmarks: Sequence[Benchmark], journal: Journal, scored: Sequence[Scored]) -> None:
    """A file for each of the first items that the page shows and that have views; those that are there stay."""
    if loaded.model.scenery is None:
        return
    of = {(record.task, record.sample): record.benchmark for record in journal.records.values()}
    made, count = {benchmark.name: benchmark for benchmark in benchmarks}, 0
    for item in (one.item for one in choose(scored, SOUGHT)):
        path, benchmark = path_of(journal.folder, item.task, item.id), made[of[item.task, item.id]]
        if not path.exists():
            example = loaded.processor.example(benchmark.prompt(benchmark.sample(item)), train=False)
            if example.views is None:
                continue
            write(path, look(loaded.model, example, pad_id=loaded.processor.pad_id))
        count += 1
        if count == KEPT:
            return


@torch.no_grad()
def look(model: VLM, example: Example, *, pad_id: int) -> Sight:
    """Of an example with views. Reducers are left out, so that there is a token for each cell."""
    views, geometry = example.views, model.geometry
    assert views is not None and model.scenery is not None, "there is nothing to look at"
    batch = collate([example], pad_id=pad_id).to(model.mean.device)
    given = GeometryInput.stack(batch.views, model.mean.device)
    output = geometry.measure(given, heads=_heads(geometry, given))
    truth = Truth(*(_array(x) for x in (views.depth, views.intrinsics, views.extrinsics)))
    names = "depth", "points", "extrinsics", "intrinsics"
    found = {name: None if (x := getattr(output, name)) is None else _array(x[0]) for name in names}
    scale = None if output.scale is None else float(output.scale[0])
    predicted = Prediction(**found, frame=output.frame, scale=scale)
    depth, points = depth_result(predicted, truth), points_result(predicted, truth)
    pixels = views.pixels.permute(0, 2, 3, 1).numpy()
    return Sight(
        Facts(
            encoder=type(geometry).__name__,
            fusion=type(model.fusion).__name__,
            views=len(pixels),
            shown=[view for view, image in enumerate(views.image) if image >= 0],
            metric=scale is not None,
            adrift=output.points is not None and points is None,
            **({} if depth is None else {"factor": depth.factor, "abs_rel": depth.abs_rel, "by_view": depth.by_view}),
            **({} if points is None else {"point_factor": points.factor, "error": points.error, "lent": points.lent}),
        ),
        pixels=np.stack([_resized(view) for view in pixels[:VIEWS]]),
        depth=None if depth is None else _thin(depth.depth),
        true_depth=None if truth.depth is None else _thin(truth.depth),
        cloud=None if points is None else _cloud(points.points, pixels, points.cameras, truth.known),
        true_cloud=None if truth.points is None else _cloud(truth.points, pixels, truth.cameras, truth.known),
        gates=_gates(model, batch),
    )


def _heads(geometry: GeometryEncoder, given: GeometryInput) -> frozenset[str]:
    """What there is to look at; an estimator's points may lack intrinsics, or its depth square views."""
    wanted = geometry.heads & {"depth", "points", "camera"}
    for heads in (wanted, wanted - {"points"}):
        with suppress(ValueError):
            geometry.check(given, heads=heads)
            return heads
    return frozenset()


def _gates(model: VLM, batch: Batch) -> dict[int, np.ndarray]:
    """What the fusion says of its openness, by view; empty where it has no gate."""
    fusion, scenery, gates = model.fusion, model.scenery, {}
    groups = model.see(batch.pixels, (), batch.views)
    images = [(group.members, group.features) for group in groups]
    scenery.tokens(model.lm.embed(batch.ids), batch, groups[0].survey if groups else None, images)
    for group in groups:
        features = group.features
        if fusion.behind:
            tokens = features.tokens.to(dtype_of(model.connector, default=features.tokens.dtype))
            features = model.connector({"vision": replace(features, tokens=tokens)})
        for places, known in group.survey.of(group.members):
            opened = fusion.openness(scenery.parts(features.at(places), known, group.survey))
            if opened is None:
                return {}
            for place, view, row in zip(places.tolist(), known.where[:, 2].tolist(), opened):
                h, w = features.grid[place]
                gates[view] = row[: h * w].view(h, w).float().cpu().numpy()
    return gates


def _array(tensor: Tensor | None) -> np.ndarray | None:
    return None if tensor is None else tensor.double().cpu().numpy()


def _cloud(points: np.ndarray, pixels: np.ndarray, cameras: np.ndarray | None, known: np.ndarray | None) -> Cloud:
    """Evenly thinned; of what is predicted, the pixels whose truth is known where any is."""
    there = np.isfinite(points).all(-1) & (points != 0).any(-1)
    which = np.flatnonzero(there if known is None else there & known)
    which = which[np.linspace(0, len(which) - 1, min(len(which), POINTS)).astype(int)]
    return Cloud(points.reshape(-1, 3)[which], pixels.reshape(-1, 3)[which], cameras)


def _sides(height: int, width: int) -> tuple[int, int]:
    shrink = min(1.0, SIDE / max(height, width))
    return max(1, round(height * shrink)), max(1, round(width * shrink))


def _resized(view: np.ndarray) -> np.ndarray:
    height, width = _sides(*view.shape[:2])
    return np.asarray(Image.fromarray(view).resize((width, height)))


def _thin(depth: np.ndarray) -> np.ndarray:
    """The first views in the size of their pictures; a mean across an edge would be no depth, so pixels are picked."""
    height, width = _sides(*depth.shape[1:])
    rows, columns = ((np.arange(count) + 0.5) * side / count for count, side in zip((height, width), depth.shape[1:]))
    return depth[:VIEWS, rows.astype(int)][:, :, columns.astype(int)]
