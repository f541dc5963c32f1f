"""AffineScaled: softmax attention whose weights no longer sum to one, but to a running mean of what their factors are.

Paper:   Affine-Scaled Attention: Towards Flexible and Stable Transformer Attention. arXiv:2602.23057
Rule:    a = gain clip(0.1 W_a x + 0.5, 0, 1) per token and head, m <- keep m + (1 - keep) mean(a) in training;
         y = W_o o with o of kernels/softmax/affine_scaled.py: weights a softmax + (m - a) / n over the n visible keys
Where:   a decoder's layer, in place of its self-attention; all keys and values are kept
Differs: W_q, W_k, W_v, W_o and positions are those of the attention it replaces, without a cap of its logits; begins as
         softmax attention: gain 2, m at 1 and W_a at 0, where the paper has gain 1 and m at 0; m moves once a batch has
         been gone back through, so that recomputed layers answer the same, and where W_a learns; each process has its m
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gnomon.kernels.softmax.affine_scaled import affine_scaled, clipped
from gnomon.vlm.layout import TokenLayout
from gnomon.vlm.mixers.base import Attention, Memory, Mixer, Rows, Tables, recall
from gnomon.vlm.placement import Layers


class AffineScaled(Mixer):
    """gain: largest factor. start: of the running mean. keep: how much of it a batch leaves."""

    rotary = True

    def __init__(self, layers: Layers = "all", *, gain: float = 2.0, start: float = 1.0, keep: float = 0.9) -> None:
        super().__init__(layers)
        if gain <= 0:
            raise ValueError(f"AffineScaled: gain {gain} is not positive; use 2, or the paper's 1")
        if not 0 <= keep <= 1:
            raise ValueError(f"AffineScaled: keep {keep} is no share; use 0 to 1, such as 0.9")
        self.gain, self.start, self.keep = gain, start, keep

    def setup(self, attention: Attention) -> None:
        super().setup(attention)
        self.sight = attention.window
        self.factor = nn.Linear(attention.width, self.heads, bias=False)
        nn.init.zeros_(self.factor.weight)
        self.register_buffer("average", torch.full((self.heads,), float(self.start)))

    def forward(
        self, x: Tensor, layout: TokenLayout, memory: Memory | None = None, *, tables: Tables | None = None
    ) -> tuple[Tensor, Memory | None]:
        rows = Rows(layout, memory)
        q, k, v = (self.project(name, x) for name in "qkv")
        q, k = self.turned(q, k, tables)
        alpha = self.gain * clipped(self.factor(x).float())
        # a copy: the backward pass may still read it when the mean has moved on
        average = self.average.float().clone()
        if self.training and alpha.requires_grad and self.factor.weight.requires_grad:
            seen = alpha.detach()[rows.visible]
            # nothing but padding has no mean
            if len(seen):
                alpha.register_hook(lambda gradient: self._move(seen.mean(0)))
        k, v, mask, memory = recall(k, v, rows, memory, self.sight)
        o, _ = affine_scaled(q, k, v, alpha=alpha, average=average, mask=mask, scale=self.scale)
        return self.linear("o", o.flatten(2)), memory

    def _move(self, mean: Tensor) -> None:
        self.average.lerp_(mean.to(self.average.dtype), 1 - self.keep)
