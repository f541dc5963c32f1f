"""Means over what is valid, the one rule of all losses here: with nothing valid they are 0, and backward still works.

What stands at invalid places (0, inf, nan) never reaches a result or a gradient.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gnomon.vlm.multiview.vectors import widen


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    """Of x where mask, a scalar; 0 that still hangs on x's graph where nothing is valid."""
    mask = mask.expand_as(x)
    return torch.where(mask, x, 0).sum() / mask.sum().clamp(min=1)


def valid(prediction: Tensor, target: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Both in float32 at least, and 1 where the mask (without the last axes, if need be) is off.

    Before any arithmetic: a mask applied only to the result lets nan into the gradient.
    """
    while mask.ndim < prediction.ndim:
        mask = mask[..., None]
    return torch.where(mask, widen(prediction), 1), torch.where(mask, widen(target), 1)


def lowest(residual: Tensor, mask: Tensor, *, share: float = 0.98, minimum: int = 1000) -> Tensor:
    """The mask without the largest residuals (VGGT's outlier filter); as it was, when that would leave too few."""
    known = residual.detach()[mask]
    if known.numel() <= minimum:
        return mask
    # kthvalue, for torch.quantile refuses more than 16 million values
    limit = known.kthvalue(1 + round(share * (known.numel() - 1))).values
    kept = mask & (residual.detach() < limit)
    return kept if int(kept.sum()) > minimum else mask
