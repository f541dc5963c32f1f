"""Hedgehog: linear attention with learned features of queries and keys that mimic softmax attention.

Paper:   The Hedgehog & the Porcupine: Expressive Linear Attentions with Softmax Mimicry. arXiv:2402.04347
Rule:    q, k as the attention has them, rotated;  y = W_o o, o of kernels/linear/hedgehog.py on M_h q + b and N_h k + c
Where:   a decoder's layer, in place of its self-attention, which the maps M and N are first trained to mimic
Differs: W_q, W_k, W_v, W_o and the norms are those of the attention it replaces; training is on the squared error of
         the answers, as in LoLCATs, and not on the cross-entropy of weights, which needs the matrix of them
"""

from __future__ import annotations

from torch import Tensor

from gnomon.kernels.linear.hedgehog import hedgehog
from gnomon.vlm.mixers.base import Attention, FeatureMap, Memory, Mimic, Rows
from gnomon.vlm.placement import Layers


class Hedgehog(Mimic):
    """joint: features with one softmax over both signs, instead of one each. rank: see Mimic."""

    def __init__(self, layers: Layers = "3 of 4", *, joint: bool = False, rank: int = 0) -> None:
        super().__init__(layers, rank=rank)
        self.joint = joint

    def setup(self, attention: Attention) -> None:
        super().setup(attention)
        self.learned_q, self.learned_k = (FeatureMap(self.heads, self.head_dim) for _ in "qk")

    def mix(self, q: Tensor, k: Tensor, v: Tensor, rows: Rows, memory: Memory | None) -> tuple[Tensor, Memory | None]:
        o, state = hedgehog(
            self.learned_q(q), self.learned_k(k), v, joint=self.joint, mask=rows.mask, state=rows.begins(memory)
        )
        return o, None if memory is None else {"s": rows.ends(state["s"], memory)}
