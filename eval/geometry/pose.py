"""Camera pose metrics. Cameras are (S,3,4), camera-from-world; angles are degrees.

Relative poses have two forms, and AUC at 30 differs by up to a tenth between them, so a number must name its form:

    textbook   E_j E_i^-1, the motion from camera i to camera j. Translations keep their sign unless `folded`; a pair
               whose true cameras coincide is skipped for translation.
    released   E_i^-1 E_j after E <- E E_0^-1, which the public evaluation of VGGT and Depth Anything 3 calculates.
               Always folded: an error of 170 degrees counts as 10; a zero translation counts as 90.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from gnomon.data.cameras import compose, inverse
from gnomon.eval.geometry.align import umeyama

Form = Literal["textbook", "released"]
Trajectory = Literal["none", "se3", "sim3"]
# Cameras closer than this have no direction between them.
_APART = 1e-6


@dataclass(frozen=True)
class PairErrors:
    """Rotation and translation errors (P,) of pairs of views; nan in translation is a skipped pair."""

    rotation: np.ndarray
    translation: np.ndarray

    @classmethod
    def join(cls, scenes: Iterable[PairErrors]) -> PairErrors:
        """Pairs of several scenes, for benchmarks that pool them."""
        scenes = list(scenes)
        rotation, translation = ([getattr(s, name) for s in scenes] for name in ("rotation", "translation"))
        return cls(np.concatenate([*rotation, np.empty(0)]), np.concatenate([*translation, np.empty(0)]))

    def rra(self, limit: float) -> float:
        """Share of pairs whose rotation is less than `limit` off; nan without a pair."""
        return _share(self.rotation < limit)

    def rta(self, limit: float) -> float:
        """Share of the pairs with a translation whose direction is less than `limit` off."""
        return _share(self.translation[~np.isnan(self.translation)] < limit)

    def auc(self, limit: int = 30) -> float:
        """Area under the share of pairs whose larger error is below a threshold; bins of a degree, the last closed."""
        if not len(self.rotation):
            return np.nan
        # fmax: a skipped translation leaves the rotation
        larger = np.fmax(self.rotation, self.translation)
        share = np.histogram(larger[larger <= limit], bins=np.arange(limit + 1))[0] / len(larger)
        return float(share.cumsum().mean())

    def summary(self, limits: tuple[int, ...] = (5, 15, 30)) -> dict[str, float]:
        rates = {f"{name}_{k}": getattr(self, name)(k) for name in ("rra", "rta") for k in limits}
        return {**rates, **{f"auc_{k}": self.auc(k) for k in (3, *limits)}}


def pair_errors(
    prediction: np.ndarray, truth: np.ndarray, *, form: Form = "textbook", folded: bool | None = None
) -> PairErrors:
    """Of all unordered pairs of views. A camera that is not finite makes the errors of its pairs infinite."""
    if form not in get_args(Form):
        raise ValueError(f"pose form {form!r} is unknown; choose from {', '.join(get_args(Form))}")
    if form == "released" and folded is False:
        raise ValueError("folded=False does not exist in the released form; leave it out, or use form='textbook'")
    _check(prediction, truth)
    first, second = np.triu_indices(len(truth), k=1)
    # what is not finite is sorted out below
    with np.errstate(invalid="ignore"):
        found, wanted = (_relative(np.asarray(x, np.float64), first, second, form) for x in (prediction, truth))
    rotation = rotation_error(found[..., :3], wanted[..., :3])
    translation = _angle(found[..., 3], wanted[..., 3])
    if form == "released" or folded:
        translation = np.minimum(translation, 180 - translation)
    lost = ~np.isfinite(found).all((-2, -1))
    rotation, translation = np.where(lost, np.inf, rotation), np.where(lost, np.inf, translation)
    if form == "textbook":
        translation = np.where(np.linalg.norm(wanted[..., 3], axis=-1) < _APART, np.nan, translation)
    return PairErrors(rotation, translation)


def rotation_error(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Angle (...,) in degrees between rotations (...,3,3), by atan2: the arc cosine is blind below 1e-6 degrees."""
    turn = np.swapaxes(a, -1, -2) @ b
    skew = (turn - np.swapaxes(turn, -1, -2))[..., [2, 0, 1], [1, 2, 0]]
    return np.degrees(np.arctan2(np.linalg.norm(skew, axis=-1), np.trace(turn, axis1=-2, axis2=-1) - 1))


def centres(extrinsics: np.ndarray) -> np.ndarray:
    """(S,3): where the cameras stand."""
    return inverse(np.asarray(extrinsics, np.float64))[..., 3]


def ate(prediction: np.ndarray, truth: np.ndarray, *, align: Trajectory = "sim3") -> float:
    """Absolute trajectory error: root mean square distance of camera centres after one alignment, or nan."""
    _check(prediction, truth)
    if not len(truth):
        return np.nan
    there = centres(_aligned(prediction, truth, align))
    return float(np.sqrt(((there - centres(truth)) ** 2).sum(-1).mean()))


def rpe(prediction: np.ndarray, truth: np.ndarray, *, step: int = 1, align: Trajectory = "sim3") -> tuple[float, float]:
    """Relative pose error from each camera to the one `step` later: root mean square of translation and of degrees."""
    _check(prediction, truth)
    if len(truth) <= step:
        return np.nan, np.nan
    # the later camera's pose in the earlier camera's frame
    found, wanted = (compose(x[:-step], inverse(x[step:])) for x in (_aligned(prediction, truth, align), truth))
    error = compose(inverse(wanted), found)
    angle = rotation_error(error[..., :3], np.eye(3))
    return float(np.sqrt((error[..., 3] ** 2).sum(-1).mean())), float(np.sqrt((angle**2).mean()))


def focal_error(prediction: np.ndarray, truth: np.ndarray) -> float:
    """mean |f' - f| / f over the cameras (S,3,3), both focal lengths; nan without cameras."""
    found, wanted = (np.asarray(x, np.float64)[..., [0, 1], [0, 1]] for x in (prediction, truth))
    return float((np.abs(found - wanted) / wanted).mean()) if wanted.size else np.nan


def _relative(extrinsics: np.ndarray, first: np.ndarray, second: np.ndarray, form: Form) -> np.ndarray:
    if form == "textbook" or not len(extrinsics):
        return compose(extrinsics[second], inverse(extrinsics[first]))
    extrinsics = compose(extrinsics, inverse(extrinsics[0]))
    return compose(inverse(extrinsics[first]), extrinsics[second])


def _angle(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Degrees (...,) between directions (...,3); 90 where one has none."""
    across, along = np.linalg.norm(np.cross(a, b), axis=-1), (a * b).sum(-1)
    return np.where((across == 0) & (along == 0), 90.0, np.degrees(np.arctan2(across, along)))


def _aligned(prediction: np.ndarray, truth: np.ndarray, align: Trajectory) -> np.ndarray:
    if align not in get_args(Trajectory):
        raise ValueError(f"trajectory alignment {align!r} is unknown; choose from {', '.join(get_args(Trajectory))}")
    if align == "none":
        return np.asarray(prediction, np.float64)
    return umeyama(centres(prediction), centres(truth), scale=align == "sim3").cameras(prediction)


def _check(prediction: np.ndarray, truth: np.ndarray) -> None:
    if prediction.shape != truth.shape or truth.shape[1:] != (3, 4):
        raise ValueError(f"cameras have shapes {prediction.shape} and {truth.shape}; give two (S, 3, 4), view by view")


def _share(hits: np.ndarray) -> float:
    return float(hits.mean()) if hits.size else np.nan
