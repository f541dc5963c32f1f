"""Alignment before scoring: what a prediction is allowed to get wrong without being marked down.

    none          metric models
    median        one factor, median(truth) / median(prediction); no outlier moves it
    scale         one factor, least squares
    scale_shift   factor and offset, least squares; of disparities for models that predict inverse depth
    umeyama       Sim(3) of points or camera centres, or SE(3) with the scale fixed
    first_frame   the first camera's frame, mean point distance 1: VGGT's targets

One alignment serves a whole sequence: all views of an array are fitted together. Where a benchmark fits every view by
itself, call this view by view, and say so.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from gnomon.data.cameras import compose, inverse

DepthAlignment = Literal["none", "median", "scale", "scale_shift"]
# Disparities below this are as far away as can be.
_FAR = 1e-6


def fit_depth(
    prediction: np.ndarray, truth: np.ndarray, mask: np.ndarray, *, how: DepthAlignment
) -> tuple[float, float]:
    """Factor and offset that bring the prediction to the truth where the mask is on; nan when it is on nowhere, and
    where a single factor would not be positive: no unit turns what lies ahead into what lies behind.
    """
    if how not in get_args(DepthAlignment):
        raise ValueError(f"depth alignment {how!r} is unknown; choose from {', '.join(get_args(DepthAlignment))}")
    if how == "none":
        return 1.0, 0.0
    guess, wanted = np.asarray(prediction, np.float64)[mask], np.asarray(truth, np.float64)[mask]
    if not len(guess):
        return np.nan, np.nan
    if how == "median":
        return _ratio(np.median(wanted), np.median(guess)), 0.0
    if how == "scale":
        return _ratio(guess @ wanted, guess @ guess), 0.0
    # centred, which is the 2x2 normal equations without their bad condition
    spread = guess - guess.mean()
    scale = float(spread @ wanted / (spread @ spread)) if spread.any() else 0.0
    return scale, float(wanted.mean() - scale * guess.mean())


def align_depth(
    prediction: np.ndarray, truth: np.ndarray, mask: np.ndarray, *, how: DepthAlignment, disparity: bool = False
) -> np.ndarray:
    """The prediction as depth in the truth's units. With `disparity` it is an inverse depth, and is fitted as one."""
    guess, truth = np.asarray(prediction, np.float64), np.asarray(truth, np.float64)
    if not disparity:
        scale, shift = fit_depth(guess, truth, mask, how=how)
        return scale * guess + shift
    scale, shift = fit_depth(guess, 1 / np.where(mask, truth, 1), mask, how=how)
    return 1 / np.maximum(scale * guess + shift, _FAR)


@dataclass(frozen=True)
class Similarity:
    """x -> scale R x + t."""

    scale: float
    rotation: np.ndarray
    translation: np.ndarray

    def points(self, points: np.ndarray) -> np.ndarray:
        """(...,3) moved."""
        return self.scale * points @ self.rotation.T + self.translation

    def cameras(self, extrinsics: np.ndarray) -> np.ndarray:
        """Cameras (...,3,4) of the moved world; their frames grow with it, so that R stays a rotation."""
        turned = extrinsics[..., :3] @ self.rotation.T
        shift = self.scale * extrinsics[..., 3:] - (turned @ self.translation)[..., None]
        return np.concatenate([turned, shift], axis=-1)


def umeyama(source: np.ndarray, target: np.ndarray, *, scale: bool = True) -> Similarity:
    """Least-squares similarity from points (N,3) to their partners (N,3) (Umeyama, 1991); never a reflection.

    `scale=False` fixes the scale at 1, which it also is for points that all coincide. Points on a line, or fewer than
    three, leave some of the rotation open: one of the best is returned. Without points everything is nan.
    """
    source, target = np.asarray(source, np.float64), np.asarray(target, np.float64)
    if source.ndim != 2 or source.shape != target.shape or source.shape[1] != 3:
        raise ValueError(f"points have shapes {source.shape} and {target.shape}; give two (N, 3) arrays in one order")
    if not (np.isfinite(source).all() and np.isfinite(target).all()):
        raise ValueError("points to align are not all finite; leave out, on both sides, those that are not")
    if not len(source):
        return Similarity(np.nan, np.full((3, 3), np.nan), np.full(3, np.nan))
    from_mean, to_mean = source.mean(0), target.mean(0)
    x, y = source - from_mean, target - to_mean
    u, d, vt = np.linalg.svd(y.T @ x / len(x))
    signs = np.array([1.0, 1.0, np.sign(np.linalg.det(u) * np.linalg.det(vt))])
    rotation = (u * signs) @ vt
    variance = (x**2).sum(1).mean()
    factor = float((d * signs).sum() / variance) if scale and variance > 0 else 1.0
    return Similarity(factor, rotation, to_mean - factor * rotation @ from_mean)


def first_frame(extrinsics: np.ndarray, points: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """Cameras (S,3,4) and world points (S,...,3) in the first camera's frame, over their mean distance; and that."""
    first = extrinsics[0]
    moved = np.asarray(points, np.float64) @ first[:, :3].T + first[:, 3]
    unit = float(np.linalg.norm(moved[mask], axis=-1).mean()) if mask.any() else np.nan
    cameras = compose(np.asarray(extrinsics, np.float64), inverse(first))
    return np.concatenate([cameras[..., :3], cameras[..., 3:] / unit], axis=-1), moved / unit, unit


def _ratio(above: float, below: float) -> float:
    return float(above / below) if below and above / below > 0 else np.nan
