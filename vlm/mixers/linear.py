"""LinearAttention: one of the causal linear operators that want no more than queries, keys and values.

Origin:  the papers that the files of kernels/linear name: plain, lightnet, inline, mala, nalaformer, l2vit
Rule:    y = W_o o with o of kernels/linear/OPERATOR.py over the tokens so far; plain: of elu(q) + 1 and elu(k) + 1, and
         lightnet: of SiLU(q) and log keys k, both with y = W_o SRMSNorm(o), over all heads and without parameters;
         l2vit: a temperature per head, at first the scale of the attention
Where:   a decoder's layer, in place of its self-attention; no rotary positions
Differs: heads, W_q, W_k, W_v, W_o are those of the attention it replaces; without the papers' rotation by rows and
         columns, local convolutions and output gates; the norm of plain is TransNormer's, with an epsilon of 1e-6
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gnomon.kernels.linear.inline import inline
from gnomon.kernels.linear.l2vit import l2vit
from gnomon.kernels.linear.lightnet import lightnet
from gnomon.kernels.linear.mala import mala
from gnomon.kernels.linear.nalaformer import nalaformer
from gnomon.kernels.linear.plain import plain
from gnomon.kernels.moments import elu1
from gnomon.kernels.op import Result
from gnomon.vlm.layout import TokenLayout
from gnomon.vlm.mixers.base import Attention, Memory, Mixer, Rows, Tables
from gnomon.vlm.placement import Layers


def _same(x: Tensor) -> Tensor:
    return x


@dataclass(frozen=True)
class Form:
    """A layer around an operator.

    query, key  what becomes of them before the call
    norm        whether the answer has one
    unseen      the normaliser z of a row without tokens
    """

    call: Callable[..., Result]
    query: Callable[[Tensor], Tensor] = _same
    key: Callable[[Tensor], Tensor] = _same
    norm: bool = False
    unseen: float = 0.0


FORMS = {
    "plain": Form(plain, elu1, elu1, norm=True),
    "lightnet": Form(lightnet, F.silu, norm=True, unseen=-torch.inf),
    "inline": Form(inline),
    "mala": Form(mala),
    "nalaformer": Form(nalaformer),
    "l2vit": Form(l2vit),
}


class LinearAttention(Mixer):
    """operator: one of FORMS. least: l2vit's smallest denominator; the paper's 100 is for 49 tokens or more."""

    def __init__(self, layers: Layers = "3 of 4", *, operator: str = "plain", least: float = 100.0) -> None:
        super().__init__(layers)
        if operator not in FORMS:
            raise ValueError(f"LinearAttention: operator {operator!r} is not for here; use one of {', '.join(FORMS)}")
        if least <= 0:
            raise ValueError(f"LinearAttention: least {least} is not positive; the paper's is 100")
        self.operator, self.least = operator, least

    def setup(self, attention: Attention) -> None:
        super().setup(attention)
        if self.operator == "l2vit":
            self.temperature = nn.Parameter(torch.full((self.heads,), self.scale))

    def forward(
        self, x: Tensor, layout: TokenLayout, memory: Memory | None = None, *, tables: Tables | None = None
    ) -> tuple[Tensor, Memory | None]:
        rows, form = Rows(layout, memory), FORMS[self.operator]
        q, k, v = (self.project(name, x) for name in "qkv")
        before = None
        if memory:
            before = {name: rows.begins({"s": value})["s"] for name, value in memory.items()}
        more = {"temperature": self.temperature, "least": self.least} if self.operator == "l2vit" else {}
        o, state = form.call(form.query(q), form.key(k), v, mask=rows.mask, scale=self.scale, state=before, **more)
        o = o.flatten(2)
        if form.norm:
            o = F.rms_norm(o, o.shape[-1:], eps=1e-6)
        return self.linear("o", o), None if memory is None else self._after(state, rows, memory)

    def _after(self, state: Memory, rows: Rows, memory: Memory) -> Memory:
        after = {}
        for name, value in state.items():
            empty = value.new_tensor(FORMS[self.operator].unseen if name == "z" else 0.0)
            after[name] = rows.ends(value, {"s": memory.get(name, empty)})
        return after
