"""KDA: Kimi Delta Attention, the delta rule on a memory that fades by channel.

Paper:   Kimi Linear: An Expressive, Efficient Attention Architecture. arXiv:2510.26692
Rule:    q, k, v = SiLU(conv(W x)), q and k of unit length; g = -exp(A) softplus(W_2 W_1 x + b) per channel,
         beta = sigmoid(W_b x);  y = W_o (RMSNorm_head(o) * sigmoid(V_2 V_1 x + c)), o of kernels/linear/kda.py
Where:   a decoder's layer, in place of its self-attention; no rotary positions
Differs: heads, their width and W_q, W_k, W_v, W_o are those of the attention it replaces, key heads shared as there;
         convolutions begin as the identity; the softmax layers keep their positions
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from gnomon.kernels.linear.kda import kda
from gnomon.vlm.layout import TokenLayout
from gnomon.vlm.mixers.base import Attention, Memory, Mixer, Norm, Rows, ShortConvs, Tables, decay_parameters, low_rank
from gnomon.vlm.placement import Layers


class KDA(Mixer):
    """taps: of the convolutions. rank: of the maps to decays and output gate."""

    def __init__(self, layers: Layers = "3 of 4", *, taps: int = 4, rank: int = 128) -> None:
        super().__init__(layers)
        self.taps, self.rank = taps, rank

    def setup(self, attention: Attention) -> None:
        super().setup(attention)
        width, inner, keys = attention.width, self.heads * self.head_dim, self.key_heads * self.head_dim
        self.convs = ShortConvs({"q": inner, "k": keys, "v": keys}, self.taps)
        self.decay, self.strength = (
            low_rank(width, self.rank, inner, bias=False),
            nn.Linear(width, self.heads, bias=False),
        )
        self.rate, self.step = decay_parameters(self.heads, inner, least=1)
        self.norm = Norm(self.head_dim)
        self.gate_proj = low_rank(width, self.rank, inner, bias=True)

    def forward(
        self, x: Tensor, layout: TokenLayout, memory: Memory | None = None, *, tables: Tables | None = None
    ) -> tuple[Tensor, Memory | None]:
        rows, tails = Rows(layout, memory), {}
        q, k, v = (self.convs.convolve(name, self.project(name, x), rows, memory, tails) for name in "qkv")
        steps = F.softplus(self.decay(x).float() + self.step.float()).view_as(q)
        g, beta = -self.rate.float().exp()[:, None] * steps, self.strength(x).float().sigmoid()
        o, state = kda(q, k, v, g=g, beta=beta, normalize=True, mask=rows.mask, state=rows.begins(memory))
        out = self.o_proj((self.norm(o) * self.gate_proj(x).sigmoid().view_as(o)).flatten(2))
        return out, None if memory is None else {"s": rows.ends(state["s"], memory), **tails}
