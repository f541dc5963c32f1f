"""Losses of depth and point maps: regression with a learned confidence, logarithmic, of gradients and of normals.

Depth maps are (...,H,W), point maps (...,H,W,3), masks (...,H,W). Losses are scalars, in float32 at least, 0 for an
empty mask.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gnomon.vlm.multiview.losses.masked import masked_mean, valid
from gnomon.vlm.multiview.vectors import cross, direction, length, widen


def confidence_regression(
    error: Tensor, confidence: Tensor, mask: Tensor, *, gamma: float = 1.0, alpha: float = 0.2
) -> Tensor:
    """mean of gamma e c - alpha log c, lowest at c = alpha / (gamma e).

    `error` is a distance per pixel and `confidence` what the head says, 1 + exp(x). VGGT: 1 and 0.2, on metres over the
    mean distance; DUSt3R: the same on points over their own mean distance (`targets.mean_distance`).
    """
    confidence, error = valid(confidence, error, mask)
    return masked_mean(gamma * error * confidence - alpha * confidence.clamp(min=1e-6).log(), mask)


def distance(prediction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Per pixel |prediction - target|: of depths (...,H,W), or of vectors (...,H,W,C); 0 where invalid."""
    prediction, target = valid(prediction, target, mask)
    difference = prediction - target
    return difference.abs() if difference.ndim == mask.ndim else length(difference)


def scale_invariant_log(prediction: Tensor, target: Tensor, mask: Tensor, *, balance: float = 0.5) -> Tensor:
    """mean e^2 - balance (mean e)^2 of each map, e = log prediction - log target, then the mean over maps.

    At balance 1 a common factor costs nothing, at 0 it is a squared error. Maps without a valid pixel are left out.
    """
    prediction, target = valid(prediction, target, mask)
    error = torch.where(mask, prediction.clamp(min=1e-6).log() - target.clamp(min=1e-6).log(), 0).flatten(-2)
    count = mask.flatten(-2).sum(-1)
    first, second = (total.sum(-1) / count.clamp(min=1) for total in (error, error.square()))
    return masked_mean(second - balance * first.square(), count > 0)


def gradient_matching(
    prediction: Tensor, target: Tensor, mask: Tensor, *, scales: int = 4, limit: float | None = None
) -> Tensor:
    """Sum over strides 1, 2, 4, ... of the mean difference between neighbours of the residual, along x and along y.

    A difference counts only where both of its pixels are valid. `limit` cuts single differences off (VGGT: 100; its
    release also divides by the number of scales).
    """
    prediction, target = valid(prediction, target, mask)
    residual = prediction - target
    total = residual.new_zeros(())
    for k in range(scales):
        coarse, known = residual[..., :: 2**k, :: 2**k], mask[..., :: 2**k, :: 2**k]
        for axis in (-1, -2):
            step = coarse.diff(dim=axis).abs()
            size = known.shape[axis] - 1
            both = known.narrow(axis, 0, size) & known.narrow(axis, 1, size)
            total = total + masked_mean(step if limit is None else step.clamp(max=limit), both)
    return total


def neighbour_normals(points: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Four unit normals per inner pixel, (4,...,H-2,W-2,3), of triangles with adjacent neighbours; and which count.

    A normal counts where its three points are valid and span a triangle.
    """
    points = widen(points)
    inner = slice(1, -1)
    around = [(slice(None, -2), inner), (inner, slice(None, -2)), (slice(2, None), inner), (inner, slice(2, None))]
    centre, seen = points[..., inner, inner, :], mask[..., inner, inner]
    arms = [points[..., rows, columns, :] - centre for rows, columns in around]
    there = [mask[..., rows, columns] & seen for rows, columns in around]
    # up, left, down, right: each with the next, so that all four face the same side
    normals = torch.stack([cross(arms[k], arms[(k + 1) % 4]) for k in range(4)])
    counted = torch.stack([there[k] & there[(k + 1) % 4] for k in range(4)])
    return direction(normals, torch.zeros_like(normals)), counted & (normals.detach() != 0).any(-1)


def normal_cosine(prediction: Tensor, target: Tensor, mask: Tensor, *, scales: int = 3) -> Tensor:
    """mean 1 - cos between the neighbour normals of two point maps (...,H,W,3), summed over strides 1, 2, 4, ...

    A predicted triangle without an area costs 1 and has no gradient.
    """
    prediction, target = valid(prediction, target, mask)
    total = prediction.new_zeros(())
    for k in range(scales):
        points, truth, known = (x[..., :: 2**k, :: 2**k, :] for x in (prediction, target, mask[..., None]))
        if min(truth.shape[-3:-1]) < 3:
            break
        found, _ = neighbour_normals(points, known[..., 0])
        wanted, counted = neighbour_normals(truth, known[..., 0])
        total = total + masked_mean(1 - (found * wanted).sum(-1), counted)
    return total
