"""MoH: the attention's heads as experts, of which a router turns on some for each token.

Paper:   MoH: Multi-Head Attention as Mixture-of-Head Attention. arXiv:2410.11842
Rule:    w = [2 b_0 S softmax(W_s x), 2 b_1 A topA(softmax(W_r x))], b = softmax(W_b x), the A largest divided by their
         sum; or, by norm, 1 for S heads and for the A others with the longest queries;  y = W_o [w_h o_h] with o of
         kernels/softmax/moh.py; in training, plus balance E^2 mean_e(chance_e choice_e), means over tokens, of E heads
Where:   a decoder's layer, in place of its self-attention; all keys and values are kept
Differs: W_q, W_k, W_v, W_o and positions are those of the attention it replaces, without a cap of its logits; the
         balance is tied to the layer's answer: it has gradients and is not in the loss that is shown; by norm without
         the division by a deviation, which changes no choice
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gnomon.kernels.softmax.moh import gate, moh, norm_gate
from gnomon.vlm.layout import TokenLayout
from gnomon.vlm.lessons import Lessons
from gnomon.vlm.mixers.base import Attention, Memory, Mixer, Rows, Tables, recall
from gnomon.vlm.placement import Layers


class MoH(Mixer):
    """shared, active: shares of the heads that are on for all tokens, and that each token chooses of the others.
    router: learned, or norm, which has no parameters. balance: what the mean over all layers counts.
    """

    rotary = True

    def __init__(
        self,
        layers: Layers = "all",
        *,
        shared: float = 0.5,
        active: float = 0.25,
        router: str = "learned",
        balance: float = 0.01,
    ) -> None:
        super().__init__(layers)
        if router not in ("learned", "norm"):
            raise ValueError(f"MoH: router {router!r} is unknown; use learned or norm")
        if not 0 <= shared < 1 or not 0 < active <= 1 - shared:
            raise ValueError(
                f"MoH: shares {shared} and {active} of the heads; use 0.5 and 0.25, or others up to 1 in all"
            )
        if balance < 0:
            raise ValueError(f"MoH: balance {balance} is negative; use 0 for none, or such as 0.01")
        self.shared, self.active, self.router, self.balance = shared, active, router, balance

    def setup(self, attention: Attention) -> None:
        super().setup(attention)
        self.layer, self.depth, self.sight = attention.layer, attention.depth, attention.window
        self.always, self.chosen = round(self.shared * self.heads), round(self.active * self.heads)
        routed = self.heads - self.always
        if not 1 <= self.chosen <= routed:
            raise ValueError(
                f"MoH: {self.active:g} of {self.heads} heads are {self.chosen} of {routed} routed; use other shares"
            )
        if self.router == "learned":
            # one shared head has nobody to share with
            sizes = {
                "routed": routed,
                "within": self.always if self.always > 1 else 0,
                "between": 2 * (self.always > 0),
            }
            self.gates = nn.ModuleDict(
                {name: nn.Linear(attention.width, size, bias=False) for name, size in sizes.items() if size}
            )

    def forward(
        self, x: Tensor, layout: TokenLayout, memory: Memory | None = None, *, tables: Tables | None = None
    ) -> tuple[Tensor, Memory | None]:
        rows = Rows(layout, memory)
        q, k, v = (self.project(name, x) for name in "qkv")
        weights, uneven = self._route(x, q, rows.visible)
        q, k = self.turned(q, k, tables)
        k, v, mask, memory = recall(k, v, rows, memory, self.sight)
        o, _ = moh(q, k, v, weights=weights, mask=mask, scale=self.scale)
        out = self.linear("o", o.flatten(2))
        if uneven is not None and self.training and self.balance:
            out = Lessons(self.balance / self.depth).correct(self.layer, out, uneven)
        return out, memory

    def _route(self, x: Tensor, q: Tensor, visible: Tensor) -> tuple[Tensor, Tensor | None]:
        """(B,T,H), and how unevenly the tokens chose."""
        if self.router == "norm":
            return norm_gate(q, shared=self.always, active=self.chosen), None
        x = x[visible]
        logits = {name: linear(x).float() for name, linear in self.gates.items()}
        if self.always == 1:
            logits["within"] = torch.zeros_like(logits["routed"][:, :1])
        weights, uneven = gate(
            logits["routed"], active=self.chosen, shared=logits.get("within"), balance=logits.get("between")
        )
        return weights.new_zeros(*visible.shape, self.heads).masked_scatter(visible[..., None], weights), uneven
