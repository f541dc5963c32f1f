"""SVEMath: levels of a second encoder, weighted by a router that looks at the picture, side by side with the tokens.

Paper:   Open Eyes, Then Reason: Fine-grained Visual Mathematical Understanding in MLLMs. arXiv:2501.06430
Rule:    per level i: e_i = MLP(nearest(g_i)), c_i = LN(W mean(g_i)), w_i = sigmoid(MLP([LN(mean(v)); c_i])),
         o_i = MLP(LN(w_i e_i)); v' = W2 GELU(W1 [v; o_1; ...; o_L])
Where:   before the connector
Differs: levels are layers of the geometry encoder (the paper: pyramid maps of a detector trained on diagrams); v' has
         the vision encoder's width and a connector follows, where the paper's last two maps are the connector
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from gnomon.vlm.fusion.base import Align, Fusion
from gnomon.vlm.layout import Features


class SVEMath(Fusion):
    """layers: the levels, as the geometry encoder numbers its layers."""

    def __init__(
        self, layers: Sequence[int] = (-4, -3, -2, -1), *, align: Align = "nearest", behind: bool = False
    ) -> None:
        super().__init__()
        if not layers or align == "merge":
            raise ValueError(f"SVEMath: {len(layers)} layers, align {align}; give 1 or more, and do not merge")
        self.layers, self.align, self.behind = tuple(layers), align, behind

    def setup(self, widths: dict[str, int], out: int) -> None:
        width = widths["geometry"] // len(self.layers)
        levels = range(len(self.layers))
        self.expand = nn.ModuleList(
            nn.Sequential(nn.Linear(width, out), nn.GELU(), nn.LayerNorm(out), nn.Linear(out, out)) for _ in levels
        )
        self.context = nn.ModuleList(nn.Sequential(nn.Linear(width, width), nn.LayerNorm(width)) for _ in levels)
        self.asks = nn.LayerNorm(out)
        self.router = nn.Sequential(nn.Linear(out + width, out), nn.GELU(), nn.Linear(out, 1))
        self.contract = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(out), nn.Linear(out, out), nn.GELU(), nn.Linear(out, out)) for _ in levels
        )
        both = (1 + len(self.layers)) * out
        self.join = nn.Sequential(nn.Linear(both, out), nn.GELU(), nn.Linear(out, out))

    def forward(self, parts: dict[str, Features]) -> Features:
        vision = parts["vision"]
        levels = self.aligned(parts).chunk(len(self.layers), -1)
        weights = self.weights(vision, levels)
        made = [vision.tokens]
        for level, expand, contract, weight in zip(levels, self.expand, self.contract, weights):
            made.append(contract(weight[:, None] * expand(level)))
        return replace(vision, tokens=self.join(torch.cat(made, -1)))

    def weights(self, vision: Features, levels: Sequence[Tensor]) -> list[Tensor]:
        """(I,1) for each level, each on its own in 0..1."""
        real = vision.valid[..., None].to(vision.tokens.dtype)

        def mean(tokens: Tensor) -> Tensor:
            return (tokens * real).sum(1) / real.sum(1)

        asks = self.asks(mean(vision.tokens))
        contexts = [context(mean(level)) for context, level in zip(self.context, levels)]
        return [self.router(torch.cat([asks, context], -1)).sigmoid() for context in contexts]
