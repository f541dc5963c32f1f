"""A valid call of an operator at sizes that the contract chooses: what a file says about its own inputs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True)
class Sizes:
    """What the contract asks for; `randn` draws in its dtype, from one seeded generator."""

    generator: torch.Generator
    dtype: torch.dtype = torch.float64
    batch: int = 2
    queries: int = 13
    keys: int = 13
    heads: int = 4
    key_heads: int = 4
    width: int = 4
    value_width: int = 6
    grid: tuple[int, ...] = (13,)

    def randn(self, *size: int) -> Tensor:
        return torch.randn(*size, generator=self.generator, dtype=torch.float64).to(self.dtype)

    def rand(self, *size: int) -> Tensor:
        return torch.rand(*size, generator=self.generator, dtype=torch.float64).to(self.dtype)

    def qkv(self) -> tuple[Tensor, Tensor, Tensor]:
        return (
            self.randn(self.batch, self.queries, self.heads, self.width),
            self.randn(self.batch, self.keys, self.key_heads, self.width),
            self.randn(self.batch, self.keys, self.key_heads, self.value_width),
        )

    def __post_init__(self) -> None:
        assert math.prod(self.grid) == self.keys, "the grid holds the tokens"


@dataclass(frozen=True)
class Example:
    """Arguments of the public function beside mask, state and impl, by what they go along with.

    per_query, per_key  (B,T,...) tensors, cut and packed with q or k
    parameters          tensors that belong to no token (decays per head, tables)
    options             the rest
    A q, k or v that is given replaces the plain random one.
    """

    q: Tensor | None = None
    k: Tensor | None = None
    v: Tensor | None = None
    per_query: Mapping[str, Tensor] = field(default_factory=dict)
    per_key: Mapping[str, Tensor] = field(default_factory=dict)
    parameters: Mapping[str, Tensor] = field(default_factory=dict)
    options: Mapping[str, object] = field(default_factory=dict)


def just_qkv(sizes: Sizes) -> Example:
    """An operator of q, k and v alone."""
    return Example()
