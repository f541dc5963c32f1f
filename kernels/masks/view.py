"""How a rule reads its tokens: many pairs at once here, one pair inside a kernel (flex.py), ranges (bounds.py)."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from gnomon.kernels.masks.tokens import Tokens


class View(Protocol):
    """The fields of both sides, which broadcast against each other. `row` and `index` are places, and no fields."""

    head: Tensor

    def q(self, name: str) -> Tensor: ...

    def k(self, name: str) -> Tensor: ...

    def look(self, table: Tensor, *place: Tensor) -> Tensor:
        """The table's value there."""
        ...


class Pairs:
    """Queries and keys at places (...) that broadcast against each other, read as (R,H,...)."""

    def __init__(self, q: Tokens, k: Tokens, rows: int, heads: int, queries: Tensor, keys: Tensor) -> None:
        self._sides = (q, queries), (k, keys)
        ends = (1,) * max(queries.ndim, keys.ndim)
        self.head = torch.arange(heads, device=queries.device).view(1, -1, *ends)
        self._rows = torch.arange(rows, device=queries.device).view(-1, 1, *ends)

    def q(self, name: str) -> Tensor:
        return self._field(name, *self._sides[0])

    def k(self, name: str) -> Tensor:
        return self._field(name, *self._sides[1])

    def look(self, table: Tensor, *place: Tensor) -> Tensor:
        return table[place]

    def _field(self, name: str, tokens: Tokens, places: Tensor) -> Tensor:
        if name == "row":
            return self._rows
        return places if name == "index" else tokens[name][:, None, places]
