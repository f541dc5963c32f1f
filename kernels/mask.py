"""The mask language: who may see whom, said once as a rule on tokens and lowered to whatever a kernel wants.

A rule is a small expression (`Expr`) over integer fields that every token carries (`Tokens`): its position p, its
segment (packed sample; -1 is padding), the item (image, view, document) it belongs to, its coordinates. The atoms
are in `masks/atoms.py` and `masks/grid.py`; they combine with `&`, `|`, `~`, `by_head` and `by_layer`. A rule means
nothing until it stands on tokens: `rule.on(tokens)` is a `Bound`, which knows the dense lowering; the others are
functions of a Bound in `masks/flex.py`, `masks/blocks.py` and `masks/groups.py`.

Shapes: R rows (1, or the batch), Q queries, K keys, H heads.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import wraps
from typing import Any

import torch
from torch import Tensor

from gnomon.kernels.masks.keeping import once, remembered
from gnomon.kernels.masks.tokens import Tokens
from gnomon.kernels.masks.view import Pairs, View


class Expr:
    """A rule. Members are frozen dataclasses, so that equal rules compare equal."""

    def allow(self, at: View) -> Tensor:
        raise NotImplementedError

    def children(self) -> tuple[Expr, ...]:
        return ()

    def check(self, tokens: Tokens) -> None:
        """Raise a ValueError when the rule makes no sense on these tokens."""
        for child in self.children():
            child.check(tokens)

    def at_layer(self, layer: int | None) -> Expr:
        """The rule with every `by_layer` decided."""
        return self

    @property
    def made_for(self) -> tuple[int, int]:
        """Rows and heads that it has something of its own for; 1 is for all."""
        return 1, 1

    @property
    def per_head(self) -> bool:
        return self.made_for[1] > 1 or any(child.per_head for child in self.children())

    def __and__(self, other: Expr) -> Expr:
        return And((self, other))

    def __or__(self, other: Expr) -> Expr:
        return Or((self, other))

    def __invert__(self) -> Expr:
        return Not(self)

    def on(self, q: Tokens, k: Tokens | None = None, *, layer: int | None = None) -> Bound:
        """The rule on the tokens of the queries and of the keys (the same ones when left out)."""
        rule = self.at_layer(layer)
        keys = q if k is None else k
        rule.check(q)
        if k is not None:
            rule.check(k)
        return Bound(rule, q, keys)


@dataclass(frozen=True)
class Everything(Expr):
    """Everybody sees everybody."""

    def allow(self, at: View) -> Tensor:
        return (at.q("p") == at.q("p")) & (at.k("p") == at.k("p"))


@dataclass(frozen=True)
class Causal(Expr):
    """Nobody sees the future: p_k <= p_q."""

    def allow(self, at: View) -> Tensor:
        return at.k("p") <= at.q("p")


@dataclass(frozen=True)
class And(Expr):
    parts: tuple[Expr, ...]

    def allow(self, at: View) -> Tensor:
        first, *rest = (part.allow(at) for part in self.parts)
        for part in rest:
            first = first & part
        return first

    def children(self) -> tuple[Expr, ...]:
        return self.parts

    def at_layer(self, layer: int | None) -> Expr:
        return And(tuple(part.at_layer(layer) for part in self.parts))

    def factors(self) -> list[Expr]:
        """The conjunction without nesting."""
        return [f for part in self.parts for f in (part.factors() if isinstance(part, And) else [part])]


@dataclass(frozen=True)
class Or(Expr):
    parts: tuple[Expr, ...]

    def allow(self, at: View) -> Tensor:
        first, *rest = (part.allow(at) for part in self.parts)
        for part in rest:
            first = first | part
        return first

    def children(self) -> tuple[Expr, ...]:
        return self.parts

    def at_layer(self, layer: int | None) -> Expr:
        return Or(tuple(part.at_layer(layer) for part in self.parts))


@dataclass(frozen=True)
class Not(Expr):
    part: Expr

    def allow(self, at: View) -> Tensor:
        return ~self.part.allow(at)

    def children(self) -> tuple[Expr, ...]:
        return (self.part,)

    def at_layer(self, layer: int | None) -> Expr:
        return Not(self.part.at_layer(layer))


@dataclass(frozen=True)
class ByHead(Expr):
    """Some query heads follow one rule, some another. Made by `by_head`."""

    branches: tuple[tuple[tuple[int, ...], Expr], ...]
    otherwise: Expr

    def allow(self, at: View) -> Tensor:
        allowed, taken = None, None
        for heads, rule in self.branches:
            # equalities and not a table: a table would have to live on the device of whoever asks
            here = at.head == heads[0]
            for head in heads[1:]:
                here = here | (at.head == head)
            part = here & rule.allow(at)
            allowed, taken = (part, here) if allowed is None else (allowed | part, taken | here)
        return allowed | (~taken & self.otherwise.allow(at))

    def children(self) -> tuple[Expr, ...]:
        return (*(rule for _, rule in self.branches), self.otherwise)

    def at_layer(self, layer: int | None) -> Expr:
        branches = tuple((heads, rule.at_layer(layer)) for heads, rule in self.branches)
        return ByHead(branches, self.otherwise.at_layer(layer))

    @property
    def per_head(self) -> bool:
        return True


@dataclass(frozen=True)
class ByLayer(Expr):
    """Some layers follow one rule, some another; decided by `rule.on(..., layer=i)`. Made by `by_layer`."""

    branches: tuple[tuple[tuple[int, ...], Expr], ...]
    otherwise: Expr

    def children(self) -> tuple[Expr, ...]:
        return (*(rule for _, rule in self.branches), self.otherwise)

    def at_layer(self, layer: int | None) -> Expr:
        if layer is None:
            raise ValueError("mask: the rule differs by layer; say which one with rule.on(tokens, layer=...)")
        for layers, rule in self.branches:
            if layer in layers:
                return rule.at_layer(layer)
        return self.otherwise.at_layer(layer)


EVERYTHING = Everything()
CAUSAL = Causal()


def by_head(branches: Mapping[Sequence[int], Expr], otherwise: Expr = EVERYTHING) -> Expr:
    return ByHead(_branches(branches), otherwise)


def by_layer(branches: Mapping[Sequence[int], Expr], otherwise: Expr = EVERYTHING) -> Expr:
    return ByLayer(_branches(branches), otherwise)


def _branches(branches: Mapping[Sequence[int], Expr]) -> tuple[tuple[tuple[int, ...], Expr], ...]:
    given = tuple((tuple(numbers), rule) for numbers, rule in branches.items())
    every = [n for numbers, _ in given for n in numbers]
    if not all(numbers for numbers, _ in given) or len(set(every)) != len(every):
        raise ValueError(f"mask: branches {[n for n, _ in given]} are empty or overlap; name each head or layer once")
    return given


@dataclass(frozen=True)
class InSegment(Expr):
    """Packed samples do not see each other; padding neither sees nor is seen. Every Bound adds it by itself."""

    def allow(self, at: View) -> Tensor:
        return (at.q("segment") == at.k("segment")) & (at.k("segment") >= 0)


@dataclass(frozen=True, eq=False)
class Given(Expr):
    """A dense mask that somebody else made: (R,H,Q,K) bool, R and H may be 1."""

    dense: Tensor

    def allow(self, at: View) -> Tensor:
        row, q, k = at.q("row"), at.q("index"), at.k("index")
        # modulo: one row, or one head, stands for all
        return at.look(self.dense.to(q.device), row % self.dense.shape[0], at.head % self.dense.shape[1], q, k)

    @property
    def made_for(self) -> tuple[int, int]:
        return self.dense.shape[0], self.dense.shape[1]


@dataclass(frozen=True, eq=False)
class Bound:
    """A rule on its tokens. `rule` is complete: it holds the segments too."""

    expr: Expr
    q: Tokens
    k: Tokens
    rule: Expr = field(init=False)
    cache: dict[Hashable, Any] = field(default_factory=dict, init=False, repr=False)
    """What a lowering made of it: a mask serves every layer of a model."""

    def __post_init__(self) -> None:
        segmented = "segment" in self.q.fields or "segment" in self.k.fields
        object.__setattr__(self, "rule", self.expr & InSegment() if segmented else self.expr)
        if self.q.rows != self.k.rows and 1 not in (self.q.rows, self.k.rows):
            raise ValueError(f"mask: {self.q.rows} rows of queries, {self.k.rows} of keys; give as many, or one")

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "cache": {}}

    @property
    def rows(self) -> int:
        return max(self.q.rows, self.k.rows, *(part.made_for[0] for part in walk(self.rule)))

    @property
    def segmented(self) -> bool:
        return self.rule is not self.expr

    def check(self, batch: int, heads: int) -> None:
        """Raise a ValueError when it was made for another batch, for other heads or, a tensor, for other tokens."""
        size = (self.q.length, self.k.length)
        for dense in (part.dense for part in walk(self.rule) if isinstance(part, Given)):
            if dense.dtype != torch.bool or dense.ndim != 4 or tuple(dense.shape[2:]) != size:
                raise ValueError(
                    f"mask: a {dense.dtype} tensor of {tuple(dense.shape)} is no dense mask; "
                    f"give bool of (1 or B, 1 or H, {size[0]}, {size[1]})"
                )
        for rows, many in ((self.q.rows, 1), (self.k.rows, 1), *(part.made_for for part in walk(self.rule))):
            if rows not in (1, batch):
                raise ValueError(f"mask: {rows} rows for a batch of {batch}; give one for all, or one each")
            if many not in (1, heads):
                raise ValueError(f"mask: {many} heads for {heads}; give one for all, or one each")
        named = [numbers for part in walk(self.rule) if isinstance(part, ByHead) for numbers, _ in part.branches]
        if unknown := {head for numbers in named for head in numbers} - {*range(heads)}:
            raise ValueError(f"mask: by_head names head {max(unknown)} of {heads}; they count from 0")

    def dense(self, heads: int = 1, *, start: int = 0, stop: int | None = None, keys: Tensor | None = None) -> Tensor:
        """(R,h,Q,K) bool of the queries start..stop and all keys, or those at the places `keys`; h is `heads` where
        heads differ, else 1.
        """
        queries, every = (torch.arange(side.length, device=side["p"].device) for side in (self.q, self.k))
        return self.pairs(heads, queries[start:stop, None], (every if keys is None else keys)[None])

    def pairs(self, heads: int, queries: Tensor, keys: Tensor) -> Tensor:
        """(R,h,...) bool of queries and keys at places that broadcast to (...)."""
        many = heads if self.rule.per_head else 1
        found = self.rule.allow(Pairs(self.q, self.k, self.rows, many, queries, keys))
        return found.expand(self.rows, many, *torch.broadcast_shapes(queries.shape, keys.shape))

    def to(self, device: torch.device | str) -> Bound:
        if self.q["p"].device == torch.device(device):
            return self
        return once(self.cache, ("to", torch.device(device)), lambda: self._moved(device))

    def _moved(self, device: torch.device | str) -> Bound:
        q = self.q.to(device)
        return Bound(self.expr, q, q if self.k is self.q else self.k.to(device))

    def __and__(self, other: Expr) -> Bound:
        joined = replace(self, expr=self.expr & other)
        # a dense mask is not found again, and would only be kept alive
        return joined if holds_dense(other) else self.cache.setdefault(("and", other), joined)


def walk(rule: Expr) -> list[Expr]:
    return [rule, *(e for child in rule.children() for e in walk(child))]


def holds_dense(rule: Expr) -> bool:
    return any(isinstance(part, Given) for part in walk(rule))


def kept(make: Callable[..., Bound]) -> Callable[..., Bound]:
    """Lowerings are kept with their Bound, so every layer of a model gets the same one. A rule that holds a dense mask
    is not found again, and would only keep that alive.
    """
    known = remembered(make)

    @wraps(make)
    def find(rule: Expr, *on: Hashable) -> Bound:
        return (make if holds_dense(rule) else known)(rule, *on)

    return find


Mask = Expr | Bound | Tensor | None
"""What an operator takes: a rule, a rule on its tokens, a dense bool tensor, or None for everything."""


def bind(mask: Mask, queries: int, keys: int, *, device: torch.device | str = "cpu") -> Bound:
    """Any mask on tokens: without tokens of its own, a rule takes the queries for the last ones of the keys."""
    if isinstance(mask, Bound):
        if (mask.q.length, mask.k.length) != (queries, keys):
            raise ValueError(
                f"mask: made for {mask.q.length} queries and {mask.k.length} keys, got {queries} and {keys}; "
                "bind it to these tokens"
            )
        return mask.to(device)
    if isinstance(mask, Tensor):
        return Given(mask).on(Tokens.line(queries, device=device), Tokens.line(keys, device=device))
    if mask is not None and not isinstance(mask, Expr):
        raise ValueError(f"mask: {type(mask).__name__} is no mask; give a rule, rule.on(tokens), a bool tensor or None")
    return _by_default(EVERYTHING if mask is None else mask, queries, keys, torch.device(device))


def meet(rule: Expr, mask: Mask, *, grid: Sequence[int] | None = None, device: torch.device | str = "cpu") -> Mask:
    """An operator's own rule and its caller's mask; on the tokens of a grid when one is given."""
    if isinstance(mask, Bound):
        return mask & rule
    if isinstance(mask, Tensor):
        mask = Given(mask)
    if mask is not None and not isinstance(mask, Expr):
        raise ValueError(f"mask: {type(mask).__name__} is no mask; give a rule, rule.on(tokens), a bool tensor or None")
    rule = rule if mask is None else rule & mask
    return rule if grid is None else _on_grid(rule, tuple(grid), torch.device(device))


@kept
def _on_grid(rule: Expr, grid: tuple[int, ...], device: torch.device) -> Bound:
    return rule.on(Tokens.grid(*grid, device=device))


@kept
def _by_default(rule: Expr, queries: int, keys: int, device: torch.device) -> Bound:
    if queries == keys:
        return rule.on(Tokens.line(keys, device=device))
    if queries > keys and not isinstance(rule, Everything):
        raise ValueError(
            f"mask: {queries} queries and only {keys} keys: which is when? "
            "give tokens with rule.on(query_tokens, key_tokens)"
        )
    return rule.on(Tokens.line(queries, start=max(keys - queries, 0), device=device), Tokens.line(keys, device=device))
