"""DeltaNet: a memory in which what is stored under a key is overwritten, with short convolutions.

Paper:   Parallelizing Linear Transformers with the Delta Rule over Sequence Length. arXiv:2406.06484
Rule:    q, k, v = SiLU(conv(W x)), q and k of unit length; beta = sigmoid(W_b x);  y = W_o RMSNorm_head(o), o of
         kernels/linear/deltanet.py
Where:   a decoder's layer, in place of its self-attention; no rotary positions
Differs: heads, their width and W_q, W_k, W_v, W_o are those of the attention it replaces, key heads shared as there;
         convolutions begin as the identity
"""

from __future__ import annotations

from torch import Tensor, nn

from gnomon.kernels.linear.deltanet import deltanet
from gnomon.vlm.layout import TokenLayout
from gnomon.vlm.mixers.base import Attention, Memory, Mixer, Norm, Rows, ShortConvs, Tables
from gnomon.vlm.placement import Layers


class DeltaNet(Mixer):
    """taps: of the convolutions. negative: beta up to 2, eigenvalues down to -1."""

    def __init__(self, layers: Layers = "3 of 4", *, taps: int = 4, negative: bool = False) -> None:
        super().__init__(layers)
        self.taps, self.negative = taps, negative

    def setup(self, attention: Attention) -> None:
        super().setup(attention)
        keys = self.key_heads * self.head_dim
        self.convs = ShortConvs({"q": self.heads * self.head_dim, "k": keys, "v": keys}, self.taps)
        self.strength = nn.Linear(attention.width, self.heads, bias=False)
        self.norm = Norm(self.head_dim)

    def forward(
        self, x: Tensor, layout: TokenLayout, memory: Memory | None = None, *, tables: Tables | None = None
    ) -> tuple[Tensor, Memory | None]:
        rows, tails = Rows(layout, memory), {}
        q, k, v = (self.convs.convolve(name, self.project(name, x), rows, memory, tails) for name in "qkv")
        beta = self.strength(x).float().sigmoid() * (2 if self.negative else 1)
        o, state = deltanet(q, k, v, beta=beta, normalize=True, mask=rows.mask, state=rows.begins(memory))
        out = self.o_proj(self.norm(o).flatten(2))
        return out, None if memory is None else {"s": rows.ends(state["s"], memory), **tails}
