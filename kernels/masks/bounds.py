"""A rule on whole blocks: whether it lets every pair of a block through, and whether it may let any.

A rule is arithmetic on the fields of tokens. Here it reads of each field the least and the largest value of a block,
and computes with ranges: what holds of the ranges holds of every pair, and nobody has looked at the pairs. A range
says nothing wrong, but may say too little (of x - x); what is left open is for the pairs themselves.

Shapes: R rows, H heads (1 when all agree), M blocks of queries, N blocks of keys.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import reduce
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from gnomon.kernels.mask import And, Bound, Expr, Not, Or


class Range:
    """Numbers of which the least and the largest value are known; of truths, what holds of all and what of some."""

    def __init__(self, low: Tensor, high: Tensor) -> None:
        self.low, self.high = low, high

    @classmethod
    def __torch_function__(
        cls,
        function: Callable[..., Any],
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Of torch.div(range, 3), or of tensor & range."""
        known = getattr(cls, function.__name__, None)
        return NotImplemented if known is None else known(_range(args[0]), *args[1:], **(kwargs or {}))

    @property
    def device(self) -> torch.device:
        return self.low.device

    def __and__(self, other: Any) -> Range:
        other = _range(other)
        low, high = self.low & other.low, self.high & other.high
        if low.dtype == torch.bool:
            return Range(low, high)
        # of integers that are known the bits are; others that are not negative lose some
        known = (self.low == self.high) & (other.low == other.high)
        positive, limits = (self.low >= 0) & (other.low >= 0), torch.iinfo(low.dtype)
        least = torch.where(positive, 0, limits.min)
        most = torch.where(positive, torch.minimum(self.high, other.high), limits.max)
        return Range(torch.where(known, low, least), torch.where(known, high, most))

    def __or__(self, other: Any) -> Range:
        other = _truth(other)
        return Range(_truth(self).low | other.low, self.high | other.high)

    def __invert__(self) -> Range:
        return Range(~_truth(self).high, ~self.low)

    def __add__(self, other: Any) -> Range:
        other = _range(other)
        return Range(self.low + other.low, self.high + other.high)

    def __neg__(self) -> Range:
        return Range(-self.high, -self.low)

    def __sub__(self, other: Any) -> Range:
        return self + -_range(other)

    def __mul__(self, other: Any) -> Range:
        other = _range(other)
        products = [x * y for x in (self.low, self.high) for y in (other.low, other.high)]
        return Range(reduce(torch.minimum, products), reduce(torch.maximum, products))

    def __floordiv__(self, by: int) -> Range:
        return self.div(by, rounding_mode="floor")

    def __mod__(self, by: int) -> Range:
        whole = self // by
        same = whole.low == whole.high
        return Range(torch.where(same, self.low % by, 0), torch.where(same, self.high % by, by - 1))

    def div(self, by: int, *, rounding_mode: str) -> Range:
        if not isinstance(by, int) or by < 1 or rounding_mode != "floor":
            raise TypeError(f"a range is divided by a positive number and rounded down, not by {by} ({rounding_mode})")
        return Range(self.low.div(by, rounding_mode="floor"), self.high.div(by, rounding_mode="floor"))

    def abs(self) -> Range:
        low = torch.where((self.low <= 0) & (self.high >= 0), 0, torch.minimum(self.low.abs(), self.high.abs()))
        return Range(low, torch.maximum(self.low.abs(), self.high.abs()))

    def long(self) -> Range:
        return Range(self.low.long(), self.high.long())

    def clamp(self, min: int | None = None, max: int | None = None) -> Range:
        return Range(self.low.clamp(min, max), self.high.clamp(min, max))

    def minimum(self, other: Any) -> Range:
        other = _range(other)
        return Range(torch.minimum(self.low, other.low), torch.minimum(self.high, other.high))

    def __le__(self, other: Any) -> Range:
        other = _range(other)
        return Range(self.high <= other.low, self.low <= other.high)

    def __lt__(self, other: Any) -> Range:
        other = _range(other)
        return Range(self.high < other.low, self.low < other.high)

    def __ge__(self, other: Any) -> Range:
        return _range(other) <= self

    def __gt__(self, other: Any) -> Range:
        return _range(other) < self

    def __eq__(self, other: Any) -> Any:
        if other is self:
            return Range(torch.ones_like(self.low, dtype=torch.bool), torch.ones_like(self.low, dtype=torch.bool))
        other = _range(other)
        low = (self.low == other.high) & (self.high == other.low)
        return Range(low, (self.low <= other.high) & (other.low <= self.high))

    def __ne__(self, other: Any) -> Any:
        return ~(self == other)

    def __bool__(self) -> bool:
        raise TypeError("a range is neither true nor false")

    __hash__ = None  # type: ignore[assignment]


def _range(value: Any) -> Range:
    if isinstance(value, Range):
        return value
    value = torch.as_tensor(value)
    return Range(value, value)


def _truth(value: Any) -> Range:
    value = _range(value)
    if value.low.dtype != torch.bool:
        raise TypeError(f"a range of {value.low.dtype} is not of truths")
    return value


class _Blocks:
    """How a rule reads blocks: ranges that broadcast to (R,H,M,N)."""

    def __init__(self, bound: Bound, heads: int, block_q: int, block_k: int) -> None:
        self.head = torch.arange(heads, device=bound.q["p"].device)[None, :, None, None]
        self._sides = (bound.q, block_q, -1), (bound.k, block_k, -2)
        self._known: dict[tuple[int, str], Range] = {}

    def q(self, name: str) -> Any:
        return self._field(0, name)

    def k(self, name: str) -> Any:
        return self._field(1, name)

    def look(self, table: Tensor, *place: Any) -> Any:
        """By how many truths there are in the rectangle."""
        *heads, q, k = place
        sums = pad(table.int().cumsum(-1).cumsum(-2), (1, 0, 1, 0))
        after, right = q.high + 1, k.high + 1
        count = sums[(*heads, after, right)] - sums[(*heads, q.low, right)]
        count = count - sums[(*heads, after, k.low)] + sums[(*heads, q.low, k.low)]
        return Range(count == (after - q.low) * (right - k.low), count > 0)

    def _field(self, side: int, name: str) -> Range:
        # kept, so that a field equals itself
        if (side, name) not in self._known:
            if name in ("row", "index"):
                raise TypeError(f"blocks have no {name}")
            tokens, block, axis = self._sides[side]
            values = tokens[name]
            # the last token stands for those that a short block lacks
            whole = torch.cat([values, values[:, -1:].expand(-1, -tokens.length % block)], 1)
            blocks = whole.unflatten(1, (-1, block)).unsqueeze(1)
            self._known[side, name] = Range(blocks.amin(-1).unsqueeze(axis), blocks.amax(-1).unsqueeze(axis))
        return self._known[side, name]


def bounds(bound: Bound, heads: int, block_q: int, block_k: int) -> tuple[Tensor, Tensor]:
    """(R,h,M,N) bool each: blocks of which every pair is let through, and all blocks of which some pair may be.

    h is `heads` where heads differ, else 1. Of a short block at the end only the tokens that there are count.
    """
    many = heads if bound.rule.per_head else 1
    size = (bound.rows, many, -(-bound.q.length // block_q), -(-bound.k.length // block_k))
    found = _judge(bound.rule, _Blocks(bound, many, block_q, block_k))
    return found.low.expand(size), found.high.expand(size)


def _judge(rule: Expr, at: _Blocks) -> Range:
    if isinstance(rule, (And, Or)):
        parts = [_judge(part, at) for part in rule.parts]
        return reduce(Range.__and__ if isinstance(rule, And) else Range.__or__, parts)
    if isinstance(rule, Not):
        return ~_judge(rule.part, at)
    try:
        return _truth(rule.allow(at))
    except (AttributeError, TypeError, IndexError):
        # an operation that ranges do not know: the pairs have to say
        no = torch.zeros(1, 1, 1, 1, dtype=torch.bool, device=at.head.device)
        return Range(no, ~no)
