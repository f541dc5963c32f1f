"""Losses of features: instances that look alike from all views, and a student's geometry tokens like the teacher's."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, layer_norm, smooth_l1_loss

from gnomon.vlm.multiview.losses.masked import masked_mean
from gnomon.vlm.multiview.vectors import length, widen


def instance_terms(
    features: Tensor,
    instances: Tensor,
    *,
    margins: tuple[float, float, float] = (0.25, 1.0, 0.5),
    minimum: int = 16,
    background: int = 0,
) -> tuple[Tensor, Tensor, Tensor]:
    """Pull, push and consistency of features (B,S,H,W,C) of length 1, with instance ids (B,S,H,W).

    pull: relu(|f - mean| - margin) over pixels, the mean being of that instance in that view; push: relu(margin -
    |mean - mean'|) over pairs of instances in one view; consistency: relu(|mean - mean'| - margin) over pairs of views
    of one instance. Instances of fewer than `minimum` pixels in a view are left out there. No member: 0.
    """
    if features.shape[:-1] != instances.shape:
        raise ValueError(
            f"features {tuple(features.shape)} and ids {tuple(instances.shape)} differ; give one id a pixel"
        )
    batch, views = instances.shape[:2]
    features = widen(features).flatten(0, -2)
    sample, view = (
        torch.arange(size, device=instances.device).reshape(shape).expand(instances.shape)
        for size, shape in ((batch, (-1, 1, 1, 1)), (views, (1, -1, 1, 1)))
    )
    keys = torch.stack([sample, view, instances], dim=-1).flatten(0, -2)
    group, member, count = torch.unique(keys, dim=0, return_inverse=True, return_counts=True)
    counts = (count >= minimum) & (group[:, 2] != background)
    total = features.new_zeros(len(group), features.shape[-1]).index_add(0, member, features)
    mean = total / count[:, None]
    pull = (length(features - mean[member]) - margins[0]).relu()

    mean, group = mean[counts], group[counts]
    apart = length(mean[:, None] - mean[None])
    same = group[:, None] == group[None]
    once = torch.ones_like(apart, dtype=torch.bool).triu(diagonal=1) & same[..., 0]
    return (
        masked_mean(pull, counts[member]),
        masked_mean((margins[1] - apart).relu(), once & same[..., 1]),
        masked_mean((apart - margins[2]).relu(), once & same[..., 2]),
    )


def instance_contrast(
    features: Tensor, instances: Tensor, *, weights: tuple[float, float, float] = (2.0, 1.0, 1.0)
) -> Tensor:
    """IGGT's 2 pull + 1 push + 1 consistency (arXiv:2510.22706)."""
    return sum(weight * term for weight, term in zip(weights, instance_terms(features, instances)))


def distill(
    student: Tensor, teacher: Tensor, mask: Tensor, *, kind: Literal["cosine", "smooth_l1"] = "cosine"
) -> Tensor:
    """How far tokens (...,N,C) are from the teacher's on one grid, both layer-normed without weights; mask (...,N)."""
    if student.shape != teacher.shape:
        raise ValueError(
            f"student tokens {tuple(student.shape)} and teacher tokens {tuple(teacher.shape)} differ; "
            "project the student to the teacher's width and bring both to one grid"
        )
    # 0 where invalid: layer norm of anything else could be nan, here or in its gradient
    pair = (torch.where(mask[..., None], widen(x), 0) for x in (student, teacher.detach()))
    ours, theirs = (layer_norm(x, x.shape[-1:]) for x in pair)
    if kind == "cosine":
        return masked_mean(1 - cosine_similarity(ours, theirs, dim=-1), mask)
    if kind == "smooth_l1":
        return masked_mean(smooth_l1_loss(ours, theirs, reduction="none"), mask[..., None])
    raise ValueError(f"distillation kind {kind!r} is unknown; use 'cosine' or 'smooth_l1'")
