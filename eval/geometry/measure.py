"""How well a geometry encoder knows scenes whose depth and cameras are known: any encoder, as far as it predicts.

    AUC@30              of cameras, textbook form, over the pairs of all scenes
    AbsRel, delta1      of depth, mean over scenes
    ... of one view     the same with the first view alone: no better where views are not brought together
    ... of the median depth    the same of one depth everywhere: what must be beaten
    AbsRel of points    mean |p' - p| / |p| in the first camera's frame, mean over scenes
    Chamfer of points   accuracy + completeness in the unit of the scenes, of the same up to 2048 pixels of both clouds

Up to scale, a scene's depth gets one factor for all views, the ratio of medians, and its points one Sim(3). What is
metric stays as it is. The encoder sees, beside pictures, what its `reads` names.

Shapes: S views, H,W pixels.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from gnomon.data.errors import BadSample
from gnomon.data.sample import Sample
from gnomon.data.views import prepare
from gnomon.eval.geometry.align import umeyama
from gnomon.eval.geometry.depth import depth_errors
from gnomon.eval.geometry.mean import Mean
from gnomon.eval.geometry.points import compare_clouds, point_map_error
from gnomon.eval.geometry.pose import PairErrors, pair_errors
from gnomon.eval.geometry.scene import Prediction, Truth, depth_result, points_result
from gnomon.vlm.geometry.base import GeometryEncoder, GeometryInput
from gnomon.vlm.layout import Views, ViewsSpec

_HEADS = frozenset({"depth", "points", "camera"})
_KNOWN = "intrinsics", "extrinsics", "depth"
# Nearest points are sought among all pairs.
_POINTS = 2048


@torch.no_grad()
def measured(encoder: GeometryEncoder, scenes: Iterable[Sample], spec: ViewsSpec) -> dict[str, float]:
    """`scenes`, how many there were, and the metrics above that the encoder has heads for; nan: nothing to compare."""
    depth, single, flat, points, pairs, count = Mean(), Mean(), Mean(), Mean(), [], 0
    device = next((p.device for p in encoder.parameters()), torch.device("cpu"))
    training = encoder.training
    encoder.eval()
    try:
        for sample in scenes:
            views, count = _views(sample, spec), count + 1
            truth = Truth(*(getattr(views, name).numpy().astype(float) for name in ("depth", *_KNOWN[:2])))
            found = _predicted(encoder, GeometryInput.stack([views], device), encoder.heads & _HEADS)
            if found.depth is not None:
                depth.add(_depth(found, truth))
                alone = _predicted(encoder, GeometryInput.stack([_first(views)], device), ["depth"])
                single.add(_depth(alone, Truth(*(None if x is None else x[:1] for x in (truth.depth, None, None)))))
                flat.add(_depth(Prediction(depth=np.ones(views.depth.shape)), truth))
            if found.points is not None:
                points.add(_points(found, truth))
            if found.extrinsics is not None:
                pairs.append(pair_errors(found.extrinsics, truth.cameras))
    finally:
        encoder.train(training)
    result: dict[str, float] = {"scenes": count}
    if pairs:
        result["AUC@30"] = PairErrors.join(pairs).auc(30)
    for name, mean in (("", depth), (" of one view", single), (" of the median depth", flat), (" of points", points)):
        result |= {f"{metric}{name}": value for metric, value in mean.result().items()}
    return result


def _views(sample: Sample, spec: ViewsSpec) -> Views:
    known = sample.geometry
    if lacking := [name for name in _KNOWN if known is None or getattr(known, name) is None]:
        raise BadSample(f"sample {sample.id} lacks {', '.join(lacking)}; an encoder is measured by depth and cameras")
    return prepare(known, spec, images=(), name=f"sample {sample.id}")


def _first(views: Views) -> Views:
    return Views(views.pixels[:1], views.image[:1], *(getattr(views, name)[:1] for name in _KNOWN))


def _predicted(encoder: GeometryEncoder, given: GeometryInput, heads: Iterable[str]) -> Prediction:
    known = {name: getattr(given, name) if name in encoder.reads else None for name in _KNOWN}
    output = encoder.measure(GeometryInput(given.images, given.valid, **known), heads=frozenset(heads))
    found = {name: _array(getattr(output, name)) for name in ("depth", "points", "extrinsics", "intrinsics")}
    scale = None if output.scale is None else float(output.scale[0])
    return Prediction(**found, frame=output.frame, scale=scale)


def _depth(found: Prediction, truth: Truth) -> dict[str, float]:
    """Infinitely wrong where depth is not finite, or no positive factor brings it to the truth."""
    if truth.depth is None:
        return {"AbsRel": math.nan, "delta1": math.nan}
    result = depth_result(found, truth)
    if math.isinf(result.abs_rel):
        return {"AbsRel": math.inf, "delta1": 0.0}
    return {"AbsRel": result.abs_rel, "delta1": depth_errors(result.depth, truth.depth)["delta_1"]}


def _points(found: Prediction, truth: Truth) -> dict[str, float]:
    """Infinite where a point is not finite: that is an error of the encoder."""
    if found.scale is None and found.frame == "world" and found.extrinsics is None:
        # the Sim(3) below brings any world to the first camera's frame
        found = replace(found, frame="ref_camera")
    result = None if truth.points is None else points_result(found, truth)
    if result is None:
        return {"AbsRel": math.nan, "Chamfer": math.nan}
    cloud, wanted = result.points[truth.known], truth.points[truth.known]
    if not np.isfinite(cloud).all():
        return {"AbsRel": math.inf, "Chamfer": math.inf}
    if found.scale is None:
        cloud = umeyama(cloud, wanted).points(cloud)
    error = point_map_error(cloud, wanted, np.ones(len(wanted), bool), align=False)
    few = slice(None, None, math.ceil(len(wanted) / _POINTS))
    return {"AbsRel": error, "Chamfer": compare_clouds(cloud[few], wanted[few])["chamfer_l1"]}


def _array(x: Tensor | None) -> np.ndarray | None:
    return None if x is None else x[0].double().cpu().numpy()
