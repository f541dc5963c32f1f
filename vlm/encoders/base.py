"""Encoder: pixels of equal size to a grid of features."""

from __future__ import annotations

from torch import Tensor, nn

from gnomon.vlm.layout import Features
from gnomon.vlm.part import Part


class Encoder(Part, nn.Module):
    """`forward` gets normalised pixels (I,3,H,W), sides multiples of `stride`, and yields H/stride x W/stride tokens.

    want: names of Features' fields (saliency, keys, wide_saliency, wide_keys, cls) that a reducer asks for.
    """

    width: int
    stride: int

    def forward(self, pixels: Tensor, want: frozenset[str] = frozenset()) -> Features:
        raise NotImplementedError
