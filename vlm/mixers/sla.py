"""SLA: softmax over the few blocks of tokens that matter most, and linear attention over most others; for encoders.

Paper:   SLA: Beyond Sparsity in Diffusion Transformers via Fine-Tunable Sparse-Linear Attention. arXiv:2509.24006
Rule:    y = W_o o, o of kernels/sparse/sla.py with a projection W z + b of the linear part, the same for all heads,
         which begins at zero
Where:   a vision encoder's block, in place of its self-attention, to be trained for a while
Differs: W_q, W_k, W_v, W_o are those of the attention it replaces; blocks of 16 tokens and a fifth of them under
         softmax, where the paper has 64 and 0.05: encoders have hundreds of tokens, its videos tens of thousands
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gnomon.kernels.sparse.sla import FEATURES, sla
from gnomon.vlm.layout import TokenLayout
from gnomon.vlm.mixers.base import Attention, Memory, Mixer, Tables
from gnomon.vlm.placement import Layers


class SLA(Mixer):
    """critical, negligible: shares of the blocks under softmax, and left out. block: its tokens.
    kernel: features of queries and keys in the linear part: softmax, elu or relu.
    """

    causal = False

    def __init__(
        self,
        layers: Layers = "all",
        *,
        critical: float = 0.2,
        negligible: float = 0.1,
        block: int = 16,
        kernel: str = "softmax",
    ) -> None:
        super().__init__(layers)
        if not (critical > 0 and negligible >= 0 and critical + negligible <= 1):
            raise ValueError(f"SLA: shares {critical} and {negligible} of blocks; use 0.2 and 0.1, or up to 1 in all")
        if block < 1:
            raise ValueError(f"SLA: block {block} holds no token; use 1 or more, such as 16")
        if kernel not in FEATURES:
            raise ValueError(f"SLA: kernel {kernel!r} does not exist; use one of {', '.join(FEATURES)}")
        self.critical, self.negligible, self.block, self.kernel = critical, negligible, block, kernel

    def setup(self, attention: Attention) -> None:
        super().setup(attention)
        self.weight = nn.Parameter(torch.zeros(self.head_dim, self.head_dim))
        self.bias = nn.Parameter(torch.zeros(self.head_dim))

    def forward(
        self, x: Tensor, layout: TokenLayout, memory: Memory | None = None, *, tables: Tables | None = None
    ) -> tuple[Tensor, Memory | None]:
        q, k, v = (self.project(name, x) for name in "qkv")
        o, _ = sla(
            q, k, v, weight=self.weight, bias=self.bias, critical=self.critical, negligible=self.negligible,
            block_q=self.block, block_k=self.block, feature=self.kernel, scale=self.scale,
        )  # fmt: skip
        return self.linear("o", o.flatten(2)), memory
