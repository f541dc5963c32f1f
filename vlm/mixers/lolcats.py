"""LoLCATs: softmax over the newest tokens and learned features over all that are older, with one denominator.

Paper:   LoLCATs: On Low-Rank Linearizing of Large Language Models. arXiv:2410.10254
Rule:    q, k as the attention has them, rotated;  y = W_o o with o of kernels/linear/lolcats.py, features of M_h q and
         N_h k, and a learned share of the window per head
Where:   a decoder's layer, in place of its self-attention: first M, N and the shares are trained to mimic it, then
         low-rank changes of W_q, W_k, W_v, W_o on the task
Differs: W_q, W_k, W_v, W_o and the norms are those of the attention it replaces; maps begin as the identity or its
         first rows, where the paper's begin at random; windows slide, where the paper has blocks of them in one of its
         two variants
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gnomon.kernels.linear.lolcats import lolcats
from gnomon.kernels.mask import CAUSAL, Mask
from gnomon.vlm.mixers.base import Attention, FeatureMap, Memory, Mimic, Rows
from gnomon.vlm.placement import Layers


class LoLCATs(Mimic):
    """window: tokens under softmax. factor: logit of the window's weight, at first. affine: the rest has 1 - that.
    feature: rows of the maps; None: as many as a head has channels. Released conversions have 64 of 128.
    rank: see Mimic; the paper has 8.
    """

    def __init__(
        self,
        layers: Layers = "all",
        *,
        window: int = 64,
        factor: float = 0.0,
        affine: bool = False,
        feature: int | None = None,
        rank: int = 0,
    ) -> None:
        super().__init__(layers, rank=rank)
        if window < 1:
            raise ValueError(f"LoLCATs: window {window} holds no token; use 1 or more, or Hedgehog")
        self.window, self.factor, self.affine, self.feature = window, factor, affine, feature

    def setup(self, attention: Attention) -> None:
        super().setup(attention)
        if self.feature is not None and not 1 <= self.feature <= self.head_dim:
            raise ValueError(f"LoLCATs: feature {self.feature} of heads of {self.head_dim}; use 1 to {self.head_dim}")
        self.learned_q, self.learned_k = (FeatureMap(self.heads, self.head_dim, self.feature, bias=False) for _ in "qk")
        self.learned_share = nn.Parameter(torch.full((self.heads,), float(self.factor)))

    def mix(self, q: Tensor, k: Tensor, v: Tensor, rows: Rows, memory: Memory | None) -> tuple[Tensor, Memory | None]:
        k, v = (x.repeat_interleave(self.heads // self.key_heads, 2) for x in (k, v))
        parts = [q, k, v, self.learned_q(q), self.learned_k(k)]
        if memory is None:
            return self._call(parts, rows.mask)[0], None
        o, memory = self._remember(parts, rows, memory)
        if rows.packed:
            o, _ = self._call(parts, rows.mask)
        return o, memory

    def _call(self, parts: list[Tensor], mask: Mask, state: Memory | None = None) -> tuple[Tensor, Memory | None]:
        q, k, v, q_map, k_map = parts
        return lolcats(
            q, k, v, q_map=q_map, k_map=k_map, factor=self.learned_share, window=self.window, affine=self.affine,
            scale=self.scale, mask=mask, state=state,
        )  # fmt: skip

    def _remember(self, parts: list[Tensor], rows: Rows, memory: Memory) -> tuple[Tensor, Memory]:
        """Rows of one length at a time: the operator goes on from equally full windows only.

        The memory holds windows with their newest key last, and how many keys are in them.
        """
        (new, order), back = rows.newest(), self.window - 1
        held = memory["held"] if memory else torch.zeros_like(new)
        # a row without new tokens keeps what it had
        o, after = torch.zeros_like(parts[0]), {name: value.clone() for name, value in memory.items()}
        for length, full in torch.unique(torch.stack([new, held])[:, new > 0], dim=1).T.tolist():
            at = ((new == length) & (held == full)).nonzero()[:, 0]
            places = at[:, None], order[at, order.shape[1] - length :]
            state = None
            if memory:
                state = {name: memory[name][at] for name in ("s", "k", "k_map", "v")}
                state |= {name: state[name][:, back - full :] for name in ("k", "k_map", "v")}
            answer, state = self._call([x[places] for x in parts], CAUSAL, state)
            o[places] = answer
            state |= {
                name: F.pad(state[name], (0, 0, 0, 0, back - state[name].shape[1], 0)) for name in ("k", "k_map", "v")
            }
            for name, value in state.items():
                after.setdefault(name, value.new_zeros(len(o), *value.shape[1:]))[at] = value
        return o, {**after, "held": (held + new).clamp(max=back)}
