"""GLA: gated linear attention, whose memory fades by channel as the tokens say.

Paper:   Gated Linear Attention Transformers with Hardware-Efficient Training. arXiv:2312.06635
Rule:    g = logsigmoid(W_2 W_1 x + b) / 16 per channel of the keys;  y = W_o (RMSNorm_head(o) * SiLU(W_g x)), o of
         kernels/linear/gla.py
Where:   a decoder's layer, in place of its self-attention; no rotary positions
Differs: heads, their width and W_q, W_k, W_v, W_o are those of the attention it replaces, where the paper has 4 heads
         and keys half as wide; shared key heads share their gates, too
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from gnomon.kernels.linear.gla import gla
from gnomon.vlm.layout import TokenLayout
from gnomon.vlm.mixers.base import Attention, Memory, Mixer, Norm, Rows, Tables, low_rank
from gnomon.vlm.placement import Layers


class GLA(Mixer):
    """rank: of the map to the gates. temperature: what their logarithm is divided by; more forgets less."""

    def __init__(self, layers: Layers = "3 of 4", *, rank: int = 16, temperature: float = 16.0) -> None:
        super().__init__(layers)
        if temperature <= 0:
            raise ValueError(f"GLA: temperature {temperature} is not positive; the paper's is 16")
        self.rank, self.temperature = rank, temperature

    def setup(self, attention: Attention) -> None:
        super().setup(attention)
        self.decay = low_rank(attention.width, self.rank, self.key_heads * self.head_dim, bias=True)
        self.norm = Norm(self.head_dim)
        self.gate_proj = nn.Linear(attention.width, self.heads * self.head_dim, bias=False)

    def forward(
        self, x: Tensor, layout: TokenLayout, memory: Memory | None = None, *, tables: Tables | None = None
    ) -> tuple[Tensor, Memory | None]:
        rows = Rows(layout, memory)
        q, k, v = (self.project(name, x) for name in "qkv")
        g = F.logsigmoid(self.decay(x).float()).view_as(k) / self.temperature
        o, state = gla(q, k, v, g=g, mask=rows.mask, state=rows.begins(memory))
        out = self.o_proj((self.norm(o) * F.silu(self.gate_proj(x)).view_as(o)).flatten(2))
        return out, None if memory is None else {"s": rows.ends(state["s"], memory)}
