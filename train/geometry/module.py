"""GeometryModule: a geometry encoder as Lightning trains it, by VGGT's losses on depth, points and cameras.

Shapes: B scenes, S views, H,W pixels.
"""

from __future__ import annotations

import torch
from lightning import LightningModule
from torch import Tensor

from gnomon.train.errors import Stopped
from gnomon.train.geometry.feed import valid_pixels
from gnomon.train.schedule import Schedule
from gnomon.vlm.geometry.base import GeometryEncoder, GeometryInput
from gnomon.vlm.multiview import pose, rays
from gnomon.vlm.multiview.losses.camera import log_scale, pose_rounds
from gnomon.vlm.multiview.losses.dense import confidence_regression, distance
from gnomon.vlm.multiview.losses.masked import masked_mean
from gnomon.vlm.multiview.losses.targets import normalise

TAUGHT = {"camera": 5.0, "depth": 1.0, "points": 1.0}
"""Heads and the weights of their losses: VGGT's, which trains points or depth, without those of gradients and normals.
"""

_WEIGHTS = {**TAUGHT, "scale": 0.1}
"""VGGT has no metric scale; in UniT it weighs that much."""

_ENOUGH = 100
"""Views with more valid pixels than this teach cameras."""


class GeometryModule(LightningModule):
    """Predictions are compared in the first camera's frame; the unit is the mean distance of the scene's points, or
    that of an encoder whose scale is metric and not learned.
    """

    boundary = True
    """Every batch ends an optimizer step."""

    def __init__(self, encoder: GeometryEncoder, *, lr: float, decay: float, schedule: Schedule) -> None:
        super().__init__()
        self.encoder, self.lr, self.decay, self.schedule = encoder, lr, decay, schedule
        self.latest: dict[str, float] = {}

    def configure_optimizers(self) -> torch.optim.Optimizer:
        matrices = [p for p in self.encoder.parameters() if p.requires_grad and p.ndim > 1]
        rest = [p for p in self.encoder.parameters() if p.requires_grad and p.ndim <= 1]
        groups = [{"params": matrices, "weight_decay": self.decay}, {"params": rest, "weight_decay": 0.0}]
        return torch.optim.AdamW(groups, lr=self.lr, betas=(0.9, 0.95))

    def on_train_batch_start(self, batch: GeometryInput, batch_idx: int) -> None:
        for group in self.trainer.optimizers[0].param_groups:
            group["lr"] = self.lr * self.schedule.factor(self.global_step)

    def training_step(self, batch: GeometryInput, batch_idx: int) -> Tensor:
        terms = losses(self.encoder, batch)
        total = sum(_WEIGHTS[name] * term for name, term in terms.items())
        if not torch.isfinite(total):
            raise Stopped(
                f"the loss of step {self.global_step} is {float(total.detach())}; lower --lr, and go on from the last "
                "checkpoint with --resume --accept_changes"
            )
        self.latest = {"loss": total.detach(), **{name: term.detach() for name, term in terms.items()}}
        return total


def losses(encoder: GeometryEncoder, batch: GeometryInput) -> dict[str, Tensor]:
    """Camera, depth, points and scale, as far as the encoder predicts them; of cameras it knows what it `reads`."""
    size, mask = tuple(batch.depth.shape[2:]), valid_pixels(batch)
    world = rays.points(rays.from_cameras(batch.extrinsics, batch.intrinsics, size=size), batch.depth)
    truth = normalise(batch.extrinsics, world, batch.depth, mask)
    known = {"intrinsics": batch.intrinsics, "extrinsics": truth.extrinsics}
    known = {name: value if name in encoder.reads else None for name, value in known.items()}
    found = encoder.measure(GeometryInput(batch.images, batch.valid, **known), heads=encoder.heads)
    # who is told of cameras has their unit
    own = found.scale is not None and "extrinsics" not in encoder.reads
    learned = own and found.scale.requires_grad
    if own and encoder.metric and not learned:
        truth = truth.times(truth.scale / found.scale)
    terms = {}
    if "camera" in encoder.heads:
        target = pose.encode(truth.extrinsics, batch.intrinsics, size=size)
        rounds = [found.pose] if found.rounds is None else list(found.rounds)
        terms["camera"] = pose_rounds(rounds, target, batch.valid & (mask.sum((-2, -1)) > _ENOUGH))
    for name in ("depth", "points"):
        if name in encoder.heads:
            error = distance(getattr(found, name), getattr(truth, name), mask)
            confidence = getattr(found, f"{name}_confidence")
            terms[name] = confidence_regression(error, confidence, mask) + masked_mean(error, mask)
    if learned:
        terms["scale"] = log_scale(found.scale, truth.scale, mask.flatten(1).any(1))
    return terms
