"""From what heads put out to depth, points, how sure they are, and cameras."""

from __future__ import annotations

import torch
from torch import Tensor


def inverse_log(y: Tensor) -> Tensor:
    """sign(y) (e^|y| - 1): odd, slope 1 at 0, and both signs of a coordinate reach far."""
    below = y < 0
    return torch.expm1(torch.where(below, 0, y)) - torch.expm1(torch.where(below, -y, 0))


def depth(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Depth above 0 and confidence above 1, both (...), of (...,2)."""
    value, sure = logits.unbind(-1)
    return value.exp(), 1 + sure.exp()


def points(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Points (...,3) and confidence (...) above 1, of (...,4)."""
    return inverse_log(logits[..., :3]), 1 + logits[..., 3].exp()


def camera(encoding: Tensor) -> Tensor:
    """Pose encodings (...,9): fields of view are not below 0, the rest may be anything."""
    return torch.cat([encoding[..., :7], encoding[..., 7:].relu()], dim=-1)
