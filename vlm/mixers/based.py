"""BASED: linear attention with the second-order Taylor series of exp as its kernel, on narrow queries and keys.

Paper:   Simple linear attention language models balance the recall-throughput tradeoff. arXiv:2402.18668
Rule:    q and k of 16 channels per head;  y = W_o o, o of kernels/linear/based.py
Where:   a decoder's layer, in place of its self-attention, beside layers of softmax in a small window; no positions
Differs: heads, W_v and W_o are those of the attention it replaces; queries and keys have maps of their own
"""

from __future__ import annotations

from torch import Tensor, nn

from gnomon.kernels.linear.based import based
from gnomon.vlm.layout import TokenLayout
from gnomon.vlm.mixers.base import Attention, Memory, Mixer, Rows, Tables
from gnomon.vlm.placement import Layers


class Based(Mixer):
    """feature: channels per head of queries and keys; the memory grows with their square."""

    takes = "vo"

    def __init__(self, layers: Layers = "3 of 4", *, feature: int = 16) -> None:
        super().__init__(layers)
        self.feature = feature

    def setup(self, attention: Attention) -> None:
        super().setup(attention)
        self.query = nn.Linear(attention.width, self.heads * self.feature, bias=False)
        self.key = nn.Linear(attention.width, self.key_heads * self.feature, bias=False)

    def forward(
        self, x: Tensor, layout: TokenLayout, memory: Memory | None = None, *, tables: Tables | None = None
    ) -> tuple[Tensor, Memory | None]:
        rows = Rows(layout, memory)
        q, k = (part(x).unflatten(-1, (-1, self.feature)) for part in (self.query, self.key))
        o, state = based(q, k, self.project("v", x), mask=rows.mask, state=rows.begins(memory))
        return self.o_proj(o.flatten(2)), None if memory is None else {"s": rows.ends(state["s"], memory)}
