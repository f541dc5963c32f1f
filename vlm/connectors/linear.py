"""Linear: one affine map from vision features to word embeddings.

Paper:   Visual Instruction Tuning. arXiv:2304.08485
Rule:    y = W x + b, each token on its own
Where:   between the vision encoder and the language model
Differs: the bias is an option
"""

from __future__ import annotations

from dataclasses import replace

from torch import nn

from gnomon.vlm.connectors.base import Bridge
from gnomon.vlm.layout import Features


class Linear(Bridge):
    def __init__(self, bias: bool = True) -> None:
        super().__init__()
        self.bias = bias

    def setup(self, widths: dict[str, int], out: int) -> None:
        self.layer = nn.Linear(widths["vision"], out, bias=self.bias)

    def forward(self, parts: dict[str, Features]) -> Features:
        vision = parts["vision"]
        return replace(vision, tokens=self.layer(vision.tokens))
