"""The block of DINOv2, VGGT and their kin: attention and MLP, each behind a norm and scaled per channel.

Parameters carry the names of the published checkpoints. Who attends to whom is the caller's choice: see `Attend`.

Shapes: B sequences, T tokens, C width, H heads, D head width.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gnomon.vlm.multiview.rope2d import Rope, rotate

Attend = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""(x, q, k, v) -> o: what attention reads, (B,T,C), and its queries, keys, values and outputs, (B,H,T,D)."""


def everywhere(x: Tensor, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Every token attends to every token of its sequence."""
    return F.scaled_dot_product_attention(q, k, v)


class Attention(nn.Module):
    """qk_norm: LayerNorm of queries and keys, per head."""

    def __init__(self, width: int, heads: int, *, qk_norm: bool = True) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"width {width} cannot be shared by {heads} attention heads; make it a multiple")
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.q_norm = nn.LayerNorm(width // heads) if qk_norm else nn.Identity()
        self.k_norm = nn.LayerNorm(width // heads) if qk_norm else nn.Identity()
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, *, rope: Rope | None = None, attend: Attend = everywhere) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        q, k = self.q_norm(q), self.k_norm(k)
        if rope is not None:
            q, k = rotate(q, rope), rotate(k, rope)
        # angles and, under autocast, norms are float32: attention runs in what the projections put out
        return self.proj(attend(x, q.to(v.dtype), k.to(v.dtype), v).transpose(1, 2).flatten(2))


class LayerScale(nn.Module):
    def __init__(self, width: int, init: float) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((width,), init))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class MLP(nn.Module):
    def __init__(self, width: int, hidden: int, out: int | None = None) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, out or width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class SwiGLU(nn.Module):
    """The MLP of ViT-g: two thirds of the hidden width, rounded up to a multiple of 8, once plain and once as gate."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        hidden = (hidden * 2 // 3 + 7) // 8 * 8
        self.w12 = nn.Linear(width, 2 * hidden)
        self.w3 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        gate, plain = self.w12(x).chunk(2, dim=-1)
        return self.w3(F.silu(gate) * plain)


class Block(nn.Module):
    """scale: what LayerScale begins with; None: there is none."""

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        ratio: int = 4,
        qk_norm: bool = True,
        scale: float | None = 0.01,
        eps: float = 1e-5,
        swiglu: bool = False,
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=eps)
        self.attn = Attention(width, heads, qk_norm=qk_norm)
        self.ls1 = nn.Identity() if scale is None else LayerScale(width, scale)
        self.norm2 = nn.LayerNorm(width, eps=eps)
        self.mlp = (SwiGLU if swiglu else MLP)(width, ratio * width)
        self.ls2 = nn.Identity() if scale is None else LayerScale(width, scale)

    def forward(self, x: Tensor, *, rope: Rope | None = None, attend: Attend = everywhere) -> Tensor:
        x = x + self.ls1(self.attn(self.norm1(x), rope=rope, attend=attend))
        return x + self.ls2(self.mlp(self.norm2(x)))
