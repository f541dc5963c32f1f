"""Lightning: TransNormerLLM's linear attention, whose memory fades at a fixed rate per head.

Paper:   Various Lengths, Constant Speed: Efficient Language Modeling with Lightning Attention. arXiv:2405.17381
Rule:    q, k = SiLU(W x), v = W_v x;  y = W_o (W_u x * SRMSNorm(o)), over all heads and without parameters, with o of
         kernels/linear/lightning.py
Where:   a decoder's layer, in place of its self-attention; no rotary positions
Differs: heads, their width and W_q, W_k, W_v, W_o are those of the attention it replaces; without LRPE-d, which the
         paper has in its first layer alone; the norm has an epsilon of 1e-6
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gnomon.kernels.linear.lightning import lightning, slopes
from gnomon.vlm.layout import TokenLayout
from gnomon.vlm.mixers.base import Attention, Memory, Mixer, Rows, Tables
from gnomon.vlm.placement import Layers


class Lightning(Mixer):
    """schedule: of the rates by head and layer: paper, alibi or minimax; a checkpoint knows only its own."""

    def __init__(self, layers: Layers = "3 of 4", *, schedule: str = "paper") -> None:
        super().__init__(layers)
        self.schedule = schedule

    def setup(self, attention: Attention) -> None:
        super().setup(attention)
        rates = slopes(self.schedule, heads=self.heads, layer=attention.layer, layers=attention.depth)
        # no buffer: it would be rounded along with the weights
        self.rates = tuple(rates.tolist())
        self.gate_proj = nn.Linear(attention.width, self.heads * self.head_dim, bias=False)

    def forward(
        self, x: Tensor, layout: TokenLayout, memory: Memory | None = None, *, tables: Tables | None = None
    ) -> tuple[Tensor, Memory | None]:
        rows = Rows(layout, memory)
        q, k, v = (self.project(name, x) for name in "qkv")
        decay = torch.tensor(self.rates, device=x.device)
        o, state = lightning(F.silu(q), F.silu(k), v, decay=decay, mask=rows.mask, state=rows.begins(memory))
        o = F.rms_norm(o.flatten(2), (self.heads * self.head_dim,), eps=1e-6)
        return self.o_proj(self.gate_proj(x) * o), None if memory is None else {"s": rows.ends(state["s"], memory)}
