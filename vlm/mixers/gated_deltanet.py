"""Gated DeltaNet: the delta rule on a memory that fades as the tokens say, with short convolutions and an output gate.

Paper:   Gated Delta Networks: Improving Mamba2 with Delta Rule. arXiv:2412.06464
Rule:    q, k, v = SiLU(conv(W x)), q and k of unit length; g = -exp(A) softplus(W_a x + b), beta = sigmoid(W_b x);
         y = W_o (RMSNorm_head(o) * SiLU(W_g x)), o of kernels/linear/gated_deltanet.py
Where:   a decoder's layer, in place of its self-attention; no rotary positions
Differs: heads, their width and W_q, W_k, W_v, W_o are those of the attention it replaces, key heads shared as there;
         convolutions begin as the identity
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from gnomon.kernels.linear.gated_deltanet import gated_deltanet
from gnomon.vlm.layout import TokenLayout
from gnomon.vlm.mixers.base import Attention, Memory, Mixer, Norm, Rows, ShortConvs, Tables, decay_parameters
from gnomon.vlm.placement import Layers


class GatedDeltaNet(Mixer):
    """taps: of the convolutions. gate: whether the output has one. negative: beta up to 2, eigenvalues down to -1."""

    def __init__(self, layers: Layers = "3 of 4", *, taps: int = 4, gate: bool = True, negative: bool = False) -> None:
        super().__init__(layers)
        self.taps, self.gate, self.negative = taps, gate, negative

    def setup(self, attention: Attention) -> None:
        super().setup(attention)
        width, heads, dim = attention.width, self.heads, self.head_dim
        keys = self.key_heads * dim
        self.convs = ShortConvs({"q": heads * dim, "k": keys, "v": keys}, self.taps)
        self.decay, self.strength = nn.Linear(width, heads, bias=False), nn.Linear(width, heads, bias=False)
        self.rate, self.step = decay_parameters(heads, heads, least=0)
        self.norm = Norm(dim)
        if self.gate:
            self.gate_proj = nn.Linear(width, heads * dim, bias=False)

    def forward(
        self, x: Tensor, layout: TokenLayout, memory: Memory | None = None, *, tables: Tables | None = None
    ) -> tuple[Tensor, Memory | None]:
        rows, tails = Rows(layout, memory), {}
        q, k, v = (self.convs.convolve(name, self.project(name, x), rows, memory, tails) for name in "qkv")
        g = -self.rate.float().exp() * F.softplus(self.decay(x).float() + self.step.float())
        beta = self.strength(x).float().sigmoid() * (2 if self.negative else 1)
        o, state = gated_deltanet(q, k, v, g=g, beta=beta, normalize=True, mask=rows.mask, state=rows.begins(memory))
        o = self.norm(o)
        if self.gate:
            o = o * F.silu(self.gate_proj(x)).view_as(o)
        return self.o_proj(o.flatten(2)), None if memory is None else {"s": rows.ends(state["s"], memory), **tails}
