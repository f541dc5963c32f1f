"""Losses of cameras: pose encodings over refinement rounds, rotations and translations, quaternions, reprojection.

Masks are (B,S): which views count; VGGT counts those with more than 100 valid pixels. All return a scalar, in float32
at least, 0 for an empty mask.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import huber_loss

from gnomon.vlm.heads.base import geodesic
from gnomon.vlm.multiview.losses.masked import masked_mean, valid
from gnomon.vlm.multiview.vectors import length, widen

NEAR = 1e-3
"""Points nearer to the camera's plane than this, or behind it, cannot be projected."""


def pose_rounds(
    rounds: Sequence[Tensor],
    target: Tensor,
    mask: Tensor,
    *,
    decay: float = 0.6,
    weights: tuple[float, float, float] = (1.0, 1.0, 0.5),
    limit: float = 100.0,
) -> Tensor:
    """VGGT's: mean absolute error of encodings (B,S,9), round i of n weighing decay^(n-1-i), summed over the rounds.

    `weights` are of translation, quaternion and field of view; `limit` cuts off single translation errors. The target's
    quaternion must have its sign settled, as `pose.encode` does. The release also divides by the number of rounds.
    """
    if not rounds:
        raise ValueError("no round to compare; give at least 1 predicted pose encoding")
    total = widen(target).new_zeros(())
    for i, guess in enumerate(rounds):
        guess, truth = valid(guess, target, mask)
        error = (guess - truth).abs()
        parts = error[..., :3].clamp(max=limit), error[..., 3:7], error[..., 7:]
        loss = sum(weight * masked_mean(part, mask[..., None]) for weight, part in zip(weights, parts))
        total = total + decay ** (len(rounds) - 1 - i) * loss
    return total


def rigid(prediction: Tensor, target: Tensor, mask: Tensor, *, delta: float = 1.0, rotation: float = 1.0) -> Tensor:
    """Huber of the distance between translations plus `rotation` times the angle, for extrinsics (B,S,3,4)."""
    prediction, target = valid(prediction, target, mask)
    apart = length(prediction[..., 3] - target[..., 3])
    angle = geodesic(prediction[..., :3], target[..., :3])
    return masked_mean(huber(apart, delta) + rotation * angle, mask)


def aligned_quaternion(prediction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """mean min(|a - b|, |a + b|) of quaternions (B,S,4): q and -q are the same rotation."""
    prediction, target = valid(prediction, target, mask)
    return masked_mean(torch.minimum(length(prediction - target), length(prediction + target)), mask)


def reprojection(
    points: Tensor, pixels: Tensor, extrinsics: Tensor, intrinsics: Tensor, mask: Tensor, *, delta: float = 1.0
) -> Tensor:
    """mean Huber of the pixels between where world points (...,N,3) project and where they were seen (...,N,2).

    Of cameras (...,3,4) and (...,3,3); the mask is (...,N). Points that are not in front of the camera do not count:
    they have no place in the image, so another loss must bring them there.
    """
    points = torch.where(mask[..., None], widen(points), 1)
    extrinsics, intrinsics = widen(extrinsics)[..., None, :, :], widen(intrinsics)[..., None, :, :]
    camera = (extrinsics[..., :3] * points[..., None, :]).sum(-1) + extrinsics[..., 3]
    mask = mask & (camera.detach()[..., 2] > NEAR)
    camera = torch.where(mask[..., None], camera, 1)
    seen = (intrinsics[..., :2, :] * (camera / camera[..., 2:])[..., None, :]).sum(-1)
    seen, pixels = valid(seen, pixels, mask)
    return masked_mean(huber(length(seen - pixels), delta), mask)


def log_scale(prediction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """mean |log prediction - log target| of metric scales (B,)."""
    prediction, target = valid(prediction, target, mask)
    return masked_mean((prediction.clamp(min=1e-6).log() - target.clamp(min=1e-6).log()).abs(), mask)


def huber(error: Tensor, delta: float) -> Tensor:
    """error^2 / 2 up to delta, linear from there; elementwise."""
    return huber_loss(error, torch.zeros_like(error), reduction="none", delta=delta)
