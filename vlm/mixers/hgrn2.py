"""HGRN-2: gated linear attention that writes exactly as much as it forgets, and forgets less the deeper the layer.

Paper:   HGRN2: Gated Linear RNNs with State Expansion. arXiv:2404.07904
Rule:    f = lower + (1 - lower) sigmoid(W_k x), q = SiLU(W_q x), v = W_v x;  y = W_o RMSNorm(o) over all heads at once,
         with o of kernels/linear/hgrn2.py
Where:   a decoder's layer, in place of its self-attention; no rotary positions
Differs: heads, their width and W_q, W_k (now of the forget gates), W_v, W_o are those of the attention it replaces;
         each layer learns the logits of its own bound, from l/L on, where the paper's begin, too: nothing keeps them
         rising, and they do not decay
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gnomon.kernels.linear.hgrn2 import hgrn2
from gnomon.vlm.layout import TokenLayout
from gnomon.vlm.mixers.base import Attention, Memory, Mixer, Norm, Rows, Tables
from gnomon.vlm.placement import Layers


class HGRN2(Mixer):
    """The first layer of a model has no bound."""

    def __init__(self, layers: Layers = "3 of 4") -> None:
        super().__init__(layers)

    def setup(self, attention: Attention) -> None:
        super().setup(attention)
        # one vector, as biases are: what looks like a matrix would decay, and to a bound of one half
        share = torch.full((self.key_heads * self.head_dim,), attention.layer / attention.depth)
        self.bound = nn.Parameter(share.logit()) if attention.layer else None
        self.norm = Norm(self.heads * self.head_dim)

    def forward(
        self, x: Tensor, layout: TokenLayout, memory: Memory | None = None, *, tables: Tables | None = None
    ) -> tuple[Tensor, Memory | None]:
        rows = Rows(layout, memory)
        q, forget, v = (self.project(name, x) for name in "qkv")
        lower = None
        if self.bound is not None:
            lower = self.bound.float().sigmoid().view(self.key_heads, self.head_dim)
            lower = lower.repeat_interleave(self.heads // self.key_heads, 0)
        o, state = hgrn2(F.silu(q), forget, v, lower=lower, mask=rows.mask, state=rows.begins(memory))
        return self.o_proj(self.norm(o.flatten(2))), None if memory is None else {"s": rows.ends(state["s"], memory)}
