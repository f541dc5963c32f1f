"""Depth metrics, summed in float64, so that a benchmark may be scored pixel by pixel or image by image.

pooled over all pixels     sums = DepthSums(); sums.add(a, b, mask); ...; sums.errors()
mean over images           mean = Mean(); mean.add(depth_errors(a, b, mask)); ...; mean.result()
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from gnomon.data.cameras import project, unproject

DELTAS = (1, 2, 3)
# Predictions are read as at least this far, for the logarithms.
_FLOOR = 1e-6
# Views agree that a point is seen when its depths differ by less, relatively.
_SAME = 0.02


@dataclass
class DepthSums:
    """What the metrics need, added up over valid pixels."""

    pixels: int = 0
    relative: float = 0.0
    square_relative: float = 0.0
    square: float = 0.0
    log: float = 0.0
    absolute_log: float = 0.0
    square_log: float = 0.0
    within: tuple[int, ...] = (0,) * len(DELTAS)

    def add(
        self, prediction: np.ndarray, truth: np.ndarray, mask: np.ndarray | None = None, *, farthest: float = math.inf
    ) -> DepthSums:
        """Depths of one shape. Valid is where the truth is finite, above 0 and below `farthest`, and the mask is on.

        A prediction that is not finite there is an error of the model, and makes the result so.
        """
        prediction, truth = np.asarray(prediction, np.float64), np.asarray(truth, np.float64)
        if prediction.shape != truth.shape:
            raise ValueError(f"depth {prediction.shape} and truth {truth.shape} differ; resize the prediction")
        known = np.isfinite(truth) & (truth > 0) & (truth < farthest)
        if mask is not None:
            known &= mask
        guess, truth = prediction[known], truth[known]
        error, e = guess - truth, np.log(np.maximum(guess, _FLOOR)) - np.log(truth)
        # exact at a ratio of 1.25 itself, where the difference of logarithms may fall on either side
        ratio = np.maximum(np.maximum(guess, _FLOOR) / truth, truth / np.maximum(guess, _FLOOR))
        self.pixels += len(guess)
        self.relative += float((np.abs(error) / truth).sum())
        self.square_relative += float((error**2 / truth).sum())
        self.square += float((error**2).sum())
        self.log += float(e.sum())
        self.absolute_log += float(np.abs(e).sum())
        self.square_log += float((e**2).sum())
        self.within = tuple(n + int((ratio < 1.25**k).sum()) for n, k in zip(self.within, DELTAS))
        return self

    def errors(self, *, balance: float = 1.0) -> dict[str, float]:
        """abs_rel, sq_rel, rmse, rmse_log, log10, delta_1..3 and silog (times 100); nan without a pixel.

        `balance` is lambda of SILog: 1 for the metric, 0.85 or 0.5 where a paper trains with it.
        """
        n = self.pixels or math.nan
        # rounding may leave a negative variance where all errors are equal
        spread = max(0.0, self.square_log / n - balance * (self.log / n) ** 2) if self.pixels else math.nan
        return {
            "abs_rel": self.relative / n,
            "sq_rel": self.square_relative / n,
            "rmse": math.sqrt(self.square / n),
            "rmse_log": math.sqrt(self.square_log / n),
            "log10": self.absolute_log / n / math.log(10),
            **{f"delta_{k}": hits / n for k, hits in zip(DELTAS, self.within)},
            "silog": 100 * math.sqrt(spread),
        }


def depth_errors(
    prediction: np.ndarray, truth: np.ndarray, mask: np.ndarray | None = None, *, farthest: float = math.inf
) -> dict[str, float]:
    """Of one image, or one sequence: `DepthSums.errors`."""
    return DepthSums().add(prediction, truth, mask, farthest=farthest).errors()


def temporal_consistency(
    prediction: np.ndarray, truth: np.ndarray, intrinsics: np.ndarray, extrinsics: np.ndarray
) -> float:
    """How far each frame's depth (T,H,W), carried to the next by the true cameras, is from what is predicted there.

    mean |prediction' - carried| / carried over the pixels that the true depth says both frames see; nan when none are.
    """
    error, count = 0.0, 0
    for t in range(len(truth) - 1):
        lens, camera = intrinsics[t + 1], extrinsics[t + 1]
        places, wanted = unproject(truth[t], intrinsics[t], extrinsics[t]), truth[t + 1]
        there, expected = _lookup(wanted, *project(places, lens, camera))
        seen = (truth[t] > 0) & (wanted[there] > 0) & (np.abs(wanted[there] - expected) < _SAME * expected)
        places = unproject(prediction[t], intrinsics[t], extrinsics[t])
        there, carried = _lookup(wanted, *project(places, lens, camera))
        seen &= carried > 0
        error += float((np.abs(prediction[t + 1][there] - carried)[seen] / carried[seen]).sum())
        count += int(seen.sum())
    return error / count if count else math.nan


def _lookup(image: np.ndarray, pixel: np.ndarray, z: np.ndarray) -> tuple[tuple[np.ndarray, np.ndarray], np.ndarray]:
    """Rows and columns under the pixel coordinates, and z; 0, 0 and a z of 0 for what is outside of the image."""
    height, width = image.shape
    with np.errstate(invalid="ignore"):
        inside = (z > 0) & (pixel >= 0).all(-1) & (pixel[..., 0] < width) & (pixel[..., 1] < height)
    column, row = (np.where(inside, pixel[..., k], 0).astype(int) for k in range(2))
    return (row, column), np.where(inside, z, 0)
