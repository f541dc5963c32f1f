"""ResidualGate: any fusion behind a gate that begins closed, so that training starts at the plain model.

Origin:  this project; the gate is that of Flamingo, arXiv:2204.14198
Rule:    v' = v + tanh(a) (fused(v, g) - v), a = 0 at first, one for all or one per channel
Where:   where the fusion inside acts
Differs: tokens that the fusion inside adds for a scene are added as they are. Give `fusion.gate` ten times the learning
         rate of the rest (it does not decay)
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import nn

from gnomon.vlm.fusion.base import Fusion, Scene, Told
from gnomon.vlm.layout import Features
from gnomon.vlm.part import build


class ResidualGate(Fusion):
    def __init__(self, fusion: Fusion | dict[str, Any], *, per_channel: bool = False) -> None:
        super().__init__()
        self.fusion = build(fusion, Fusion) if isinstance(fusion, dict) else fusion
        self.per_channel = per_channel
        for name in ("behind", "needs", "align", "merge", "layers", "frames", "extra", "sees"):
            setattr(self, name, getattr(self.fusion, name))
        # tokens that are added for scenes pass no gate
        self.zero = not self.extra

    def setup(self, widths: dict[str, int], out: int) -> None:
        self.fusion.setup(widths, out)
        self.gate = nn.Parameter(torch.zeros(out if self.per_channel else 1))

    def forward(self, parts: dict[str, Features]) -> Features:
        vision = parts["vision"]
        fused, share = self.fusion(parts).tokens, self.gate.tanh()
        self.opened = share.detach().abs().mean() * (1 if self.fusion.opened is None else self.fusion.opened)
        return replace(vision, tokens=vision.tokens + share * (fused - vision.tokens))

    def scene(self, scene: Scene) -> Told:
        return self.fusion.scene(scene)
