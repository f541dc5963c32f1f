"""DeltaMemory: a layer that remembers all tokens before in one matrix per head, whatever their number.

Kimi Delta Attention (kernels/linear/kda.py) under the names of flash-linear-attention's layer, which HorizonStream's
weights have. It has no positions: the order of the tokens is all it knows.

Shapes: B sequences, T tokens, C width, H heads, D head width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gnomon.kernels.linear.kda import kda
from gnomon.kernels.mask import CAUSAL
from gnomon.vlm.mixers.base import Norm, decay_parameters, low_rank
from gnomon.vlm.multiview.block import MLP, LayerScale

Memory = dict[str, Tensor]
"""s (B,H,D,D) float32, and the last inputs of each convolution (B,C,3)."""


class DeltaMemory(nn.Module):
    """taps: of the convolutions."""

    def __init__(self, width: int, heads: int, *, taps: int = 4) -> None:
        super().__init__()
        self.heads, self.taps = heads, taps
        for name in "qkv":
            self.add_module(f"{name}_proj", nn.Linear(width, width, bias=False))
            self.add_module(f"{name}_conv1d", nn.Conv1d(width, width, taps, groups=width, bias=False))
        self.f_proj = low_rank(width, width // heads, width, bias=False)
        self.b_proj = nn.Linear(width, heads, bias=False)
        self.A_log, self.dt_bias = decay_parameters(heads, width, least=1)
        self.g_proj = low_rank(width, width // heads, width, bias=True)
        self.o_norm = Norm(width // heads)
        self.o_proj = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor, memory: Memory | None = None) -> tuple[Tensor, Memory]:
        """(B,T,C) to (B,T,C), and the memory of these tokens and of all that `memory` holds."""
        tails: Memory = {}
        q, k, v = (self._convolved(name, x, memory, tails) for name in "qkv")
        steps = F.softplus(self.f_proj(x).float() + self.dt_bias.float()).view_as(q)
        g, beta = -self.A_log.float().exp()[:, None] * steps, self.b_proj(x).float().sigmoid()
        state = None if memory is None else {"s": memory["s"]}
        o, state = kda(q, k, v, g=g, beta=beta, normalize=True, mask=CAUSAL, state=state)
        out = self.o_proj((self.o_norm(o) * self.g_proj(x).sigmoid().view_as(o)).flatten(2))
        return out, {"s": state["s"], **tails}

    def _convolved(self, name: str, x: Tensor, memory: Memory | None, tails: Memory) -> Tensor:
        """(B,T,H,D); the last inputs go into `tails`."""
        x = getattr(self, f"{name}_proj")(x).mT
        x = F.pad(x, (self.taps - 1, 0)) if memory is None else torch.cat([memory[name].to(x.dtype), x], dim=-1)
        # a copy: a slice would keep all of x
        tails[name] = x[..., x.shape[-1] - self.taps + 1 :].clone()
        return F.silu(getattr(self, f"{name}_conv1d")(x)).mT.unflatten(-1, (self.heads, -1))


class MemoryBlock(nn.Module):
    """A block of vlm/multiview/block.py with a memory in place of its attention."""

    def __init__(self, width: int, heads: int, *, scale: float = 0.01) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attn = nn.ModuleDict({"gla": DeltaMemory(width, heads)})
        self.ls1 = LayerScale(width, scale)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = MLP(width, 4 * width)
        self.ls2 = LayerScale(width, scale)

    def forward(self, x: Tensor, memory: Memory | None = None) -> tuple[Tensor, Memory]:
        seen, memory = self.attn["gla"](self.norm1(x), memory)
        x = x + self.ls1(seen)
        return x + self.ls2(self.mlp(self.norm2(x))), memory
