"""Patches: pictures cut into squares, one linear map each. And what is done to the pixels before.

Shapes: I pictures, B scenes, S views, N patches, C width.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class PatchEmbed(nn.Module):
    """(I,3,H,W) to (I,N,C)."""

    def __init__(self, width: int, patch: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, patch, patch)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.proj(pixels).flatten(2).transpose(1, 2)


def normalise(images: Tensor, valid: Tensor, *, mean: Sequence[float] = MEAN, std: Sequence[float] = STD) -> Tensor:
    """Views (B,S,3,H,W) of 0..1 by mean and deviation, ImageNet's by default. Views that are not there become grey,
    whatever their pixels hold: no softmax weight, however small, makes a number of a NaN.
    """
    centre, spread = (images.new_tensor(value)[:, None, None] for value in (mean, std))
    return ((images - centre) / spread).masked_fill(~valid[..., None, None, None], 0)
