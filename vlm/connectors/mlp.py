"""MLP: the two-layer connector of LLaVA-1.5.

Paper:   Improved Baselines with Visual Instruction Tuning. arXiv:2310.03744
Rule:    y = W2 GELU(W1 x + b1) + b2, each token on its own
Where:   between the vision encoder and the language model
Differs: depth is an option; depth 1 is the linear connector of LLaVA
"""

from __future__ import annotations

from dataclasses import replace

from torch import nn

from gnomon.vlm.connectors.base import Bridge
from gnomon.vlm.layout import Features


class MLP(Bridge):
    def __init__(self, depth: int = 2) -> None:
        super().__init__()
        if depth < 1:
            raise ValueError(f"connector depth {depth} is too small; use 1 or more")
        self.depth = depth

    def setup(self, widths: dict[str, int], out: int) -> None:
        layers: list[nn.Module] = [nn.Linear(widths["vision"], out)]
        for _ in range(self.depth - 1):
            layers += [nn.GELU(), nn.Linear(out, out)]
        self.layers = nn.Sequential(*layers)

    def forward(self, parts: dict[str, Features]) -> Features:
        vision = parts["vision"]
        return replace(vision, tokens=self.layers(vision.tokens))
