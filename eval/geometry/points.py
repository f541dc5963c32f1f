"""Metrics of point clouds and point maps.

    accuracy       mean over predicted points of the distance to the nearest true one
    completeness   mean over true points of the distance to the nearest predicted one
    overall        (accuracy + completeness) / 2
    chamfer_l1     accuracy + completeness, the sum and not its half
    chamfer_l2     the same sum of mean squared distances
    precision, recall, f    shares of predicted and of true points nearer than a threshold, and 2 P R / (P + R)
    normal_consistency      mean |n . n'| with the nearest point's normal, averaged over both ways

A cloud without points makes everything nan; points that are not finite are an error of the caller's mask.
"""

from __future__ import annotations

import numpy as np
import torch

from gnomon.eval.geometry.align import umeyama

NAMES = (
    *("accuracy", "completeness", "overall", "chamfer_l1", "chamfer_l2", "accuracy_median", "completeness_median"),
    *("precision", "recall", "f"),
)
# Distances that are held at once: 32 MB of float64.
_HELD = 4_000_000


def nearest(source: np.ndarray, target: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Distance (N,) from each source point (N,3) to its nearest target point (M,3), and which that is.

    All pairs, some rows at a time: exact, O(N M) time, little memory. Thin out clouds of more than some 100,000 points.
    """
    points, others = (torch.from_numpy(np.ascontiguousarray(x, dtype=np.float64)) for x in (source, target))
    rows = max(1, _HELD // max(1, len(others)))
    # not by the product of matrices, which is faster but loses small distances between large coordinates
    found = [
        torch.cdist(part, others, compute_mode="donot_use_mm_for_euclid_dist").min(dim=1)
        for part in points.split(rows)
        if len(part)
    ]
    if not found:
        return np.empty(0), np.empty(0, dtype=np.int64)
    return tuple(np.concatenate([getattr(part, name).numpy() for part in found]) for name in ("values", "indices"))


def compare_clouds(
    prediction: np.ndarray,
    truth: np.ndarray,
    *,
    threshold: float = 0.05,
    clip: float = np.inf,
    normals: tuple[np.ndarray, np.ndarray] | None = None,
) -> dict[str, float]:
    """Metrics of clouds (N,3) and (M,3) in one frame; see above.

    `threshold` of precision and recall: 0.05 m indoors, 0.01 to 0.02 for objects. `clip` is the largest distance that a
    point may count for. `normals` are the clouds' own unit normals, for normal_consistency.
    """
    prediction, truth = (_cloud(x, name) for x, name in ((prediction, "predicted"), (truth, "true")))
    if not len(prediction) or not len(truth):
        return dict.fromkeys(NAMES if normals is None else (*NAMES, "normal_consistency"), np.nan)
    (off, to_truth), (missed, to_prediction) = nearest(prediction, truth), nearest(truth, prediction)
    precision, recall = float((off < threshold).mean()), float((missed < threshold).mean())
    off, missed = np.minimum(off, clip), np.minimum(missed, clip)
    accuracy, completeness = float(off.mean()), float(missed.mean())
    values = [accuracy, completeness, (accuracy + completeness) / 2, accuracy + completeness]
    values += [float((off**2).mean() + (missed**2).mean()), float(np.median(off)), float(np.median(missed))]
    values += [precision, recall, 2 * precision * recall / (precision + recall) if precision + recall else 0.0]
    result = dict(zip(NAMES, values))
    if normals is not None:
        found, wanted = (np.asarray(n, np.float64) for n in normals)
        ways = (found * wanted[to_truth], wanted * found[to_prediction])
        result["normal_consistency"] = float(np.mean([np.abs(way.sum(-1)).mean() for way in ways]))
    return result


def point_map_error(prediction: np.ndarray, truth: np.ndarray, mask: np.ndarray, *, align: bool = True) -> float:
    """mean |P' - P| / |P| of point maps (...,3) where the mask is on, after one Sim(3) for all; nan when it is nowhere.

    |P| is the distance from the origin of the truth's frame: give both in the reference camera's.
    """
    found, wanted = (np.asarray(x, np.float64)[mask] for x in (prediction, truth))
    if not len(wanted):
        return np.nan
    if align:
        found = umeyama(found, wanted).points(found)
    return float((np.linalg.norm(found - wanted, axis=-1) / np.linalg.norm(wanted, axis=-1)).mean())


def _cloud(points: np.ndarray, which: str) -> np.ndarray:
    points = np.asarray(points, np.float64)
    if points.ndim != 2 or points.shape[1] != 3:
        raise ValueError(f"the {which} cloud has shape {points.shape}; give (N, 3) points, those of valid pixels")
    if not np.isfinite(points).all():
        raise ValueError(f"the {which} cloud has points that are not finite; leave them out by the mask")
    return points
