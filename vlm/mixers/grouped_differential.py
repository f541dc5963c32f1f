"""GroupedDifferential: signal maps of attention minus noise maps, of which several signals share one.

Paper:   Grouped Differential Attention. arXiv:2510.06949
Rule:    in each group of heads the last is noise, in each pair of key heads the second; amount = exp(a_q a_k) -
         exp(b_q b_k) + first(layer), first(l) = 0.8 - 0.6 exp(-0.3 l);
         y = W_o ((1 - first) RMSNorm_head(o)), o of kernels/softmax/grouped_differential.py
Where:   a decoder's layer, in place of its self-attention; all keys and values are kept
Differs: heads, W_q, W_k, W_v and positions are those of the attention it replaces, without a cap of its logits, and so
         is W_o at ratio 1, the Differential Transformer; others have answers that are wider and a W_o of their own. It
         is to be trained: no beginning of it answers as softmax attention does
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gnomon.kernels.softmax.grouped_differential import grouped_differential, initial, learned
from gnomon.vlm.layout import TokenLayout
from gnomon.vlm.mixers.base import Attention, Memory, Mixer, Norm, Rows, Tables, recall
from gnomon.vlm.placement import Layers


class GroupedDifferential(Mixer):
    """ratio: signal heads to one noise head."""

    rotary = True

    def __init__(self, layers: Layers = "all", *, ratio: int = 1) -> None:
        super().__init__(layers)
        if ratio < 1:
            raise ValueError(f"GroupedDifferential: ratio {ratio} leaves no signal; use 1 or more, such as 4")
        self.ratio = ratio
        if ratio > 1:
            self.takes = "qkv"

    def setup(self, attention: Attention) -> None:
        super().setup(attention)
        noise, pairs = self.heads // (self.ratio + 1), self.key_heads // 2
        if self.heads % (self.ratio + 1) or self.key_heads % 2 or noise % pairs:
            raise ValueError(
                f"GroupedDifferential: {self.heads} heads with {self.key_heads} key heads at ratio {self.ratio}; it "
                "needs n (ratio + 1) heads, and key heads in pairs of which n is a multiple; use another ratio or model"
            )
        self.sight, self.layer = attention.window, attention.layer
        self.vectors = nn.ParameterList(0.1 * torch.randn(self.head_dim) for _ in range(4))
        self.norm = Norm(2 * self.head_dim)
        if self.ratio > 1:
            self.out_proj = nn.Linear(2 * noise * self.ratio * self.head_dim, attention.width, bias=False)

    def forward(
        self, x: Tensor, layout: TokenLayout, memory: Memory | None = None, *, tables: Tables | None = None
    ) -> tuple[Tensor, Memory | None]:
        rows = Rows(layout, memory)
        q, k, v = (self.project(name, x) for name in "qkv")
        q, k = self.turned(q, k, tables)
        k, v, mask, memory = recall(k, v, rows, memory, self.sight)
        amount = learned(*self.vectors, layer=self.layer)
        o, _ = grouped_differential(q, k, v, amount=amount, ratio=self.ratio, mask=mask, scale=self.scale)
        o = (1 - initial(self.layer)) * self.norm(o).flatten(2)
        return (self.linear("o", o) if self.ratio == 1 else self.out_proj(o)), memory
