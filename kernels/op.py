"""The operator protocol: a record that says what an operator can do, and the one way in that holds it to that.

A file of `softmax/`, `linear/` or `sparse/` declares `OP = Op(name=..., impls={...}, ...)` and a public function called
like the record's name, which ends in `OP.run(...)`. README.md shows a whole one.

Shapes: B batch, Q queries, K keys, H heads (of the output), D width of q and k, V width of v, N sequences.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

import torch
from torch import Tensor

from gnomon.kernels import checks, varlen
from gnomon.kernels.example import Example, Sizes
from gnomon.kernels.mask import EVERYTHING, Bound, Causal, Everything, Mask, bind
from gnomon.kernels.masks.tokens import Tokens

PATTERNS = {"NS": "noncausal self", "CS": "causal self", "NC": "noncausal cross", "CC": "causal cross"}

State = dict[str, Tensor]
"""What an operator remembers of the tokens it saw: a flat pytree of tensors; each begins with the sequence."""

Result = tuple[Tensor, State | None]


@dataclass(frozen=True)
class Shape:
    """The sizes of one call, as states, costs and refusals need them."""

    batch: int
    queries: int
    keys: int
    heads: int
    key_heads: int
    width: int
    value_width: int
    causal: bool
    dtype: torch.dtype = torch.float32
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    grad: bool = False

    @property
    def accumulate(self) -> torch.dtype:
        """States, statistics and sums: float64 for float64, float32 for everything else."""
        return torch.float64 if self.dtype == torch.float64 else torch.float32

    def zeros(self, *size: int) -> Tensor:
        return torch.zeros(size, dtype=self.accumulate, device=self.device)


@dataclass(frozen=True)
class Cost:
    """What one forward call must at least do: operations (2 per multiply-add), exponentials, bytes moved."""

    operations: float
    bytes: float
    exponentials: float = 0.0


Reason = Callable[[Shape, Bound], "str | None"]
"""Why an implementation does not take a call (its sizes and its mask), or None."""


def never(shape: Shape, mask: Bound) -> str | None:
    return None


@dataclass(frozen=True)
class Impl:
    """One implementation.

    call     (q, k, v, *, mask | causal, scale, state, companions..., options...) -> (o, state)
    refuses  why it cannot run a call
    declines why `auto` should pass it over although it can run
    twin     where it stands in triton_ops/, when it is imported late
    packed   takes `cu_seqlens` too (operators with masks: reads the segments from the mask); else it gets one sequence
             at a time
    grouped  reads k and v with fewer heads than q; else they are repeated for it
    """

    call: Callable[..., Result]
    refuses: Reason = never
    packed: bool = False
    grouped: bool = False
    declines: Reason = never
    twin: str | None = None


def triton(path: str, *, refuses: Reason = never, packed: bool = False, grouped: bool = False) -> Impl:
    """An implementation in `triton_ops/`, imported when it first runs: triton("linear.lightning:chunk")."""
    module, _, name = path.partition(":")

    def call(*tensors: Tensor, **named: object) -> Result:
        return getattr(importlib.import_module(f"gnomon.kernels.triton_ops.{module}"), name)(*tensors, **named)

    def reason(shape: Shape, mask: Bound) -> str | None:
        if importlib.util.find_spec("triton") is None:
            return "triton is not installed"
        if shape.device.type != "cuda" and not interpreting():
            return f"the tensors are on {shape.device.type} and triton is not interpreting"
        if shape.dtype == torch.float64 and shape.device.type == "cuda":
            return "float64 is for the references"
        return refuses(shape, mask)

    return Impl(call, reason, packed, grouped, twin=path)


def interpreting() -> bool:
    """Whether triton runs its kernels on the CPU (TRITON_INTERPRET=1, set before triton is imported)."""
    knobs = getattr(importlib.import_module("triton"), "knobs", None)
    # triton has no knobs before 3.4, and reads its environment itself
    return os.environ.get("TRITON_INTERPRET") == "1" if knobs is None else bool(knobs.runtime.interpret)


def interpreter_refuses(shape: Shape, mask: Bound) -> str | None:
    """A reason for kernels with products."""
    if shape.dtype == torch.bfloat16 and shape.device.type == "cpu":
        return "triton's interpreter has no products of bfloat16"
    return None


@dataclass(frozen=True)
class Choice:
    """Which implementation a call used, and for `auto` what spoke against those before it; its sizes, mask and cost."""

    op: str
    asked: str
    used: str
    passed_over: Mapping[str, str]
    shape: Shape
    mask: Bound
    cost: Callable[[Shape], Cost]


_choices: ContextVar[list[Choice] | None] = ContextVar("choices", default=None)


@contextmanager
def recording() -> Iterator[list[Choice]]:
    """Every choice of an implementation made inside: `with recording() as choices: model(x)`."""
    made: list[Choice] = []
    token = _choices.set(made)
    try:
        yield made
    finally:
        _choices.reset(token)


@dataclass(frozen=True, kw_only=True)
class Op:
    """What one operator can do.

    name      of the public function in the same file
    impls     by name: reference (the specification), recurrent, chunk, group, sdpa, flex, triton
    auto      the order in which impl="auto" tries them
    patterns  of PATTERNS; NS or NC let a call be noncausal, CS or CC causal
    masks     takes any mask; else only everything or CAUSAL, and tokens may have segments
    state     (Shape) -> the state before the first token; None: the operator has no state of fixed size
    cache     the state grows with the tokens (softmax keeps k and v) and the public function handles it
    grid      needs an option `grid`, the extents of its tokens in raster order
    handmade  implementations whose backward is written by hand: their gradients are checked by finite differences
    cost      (Shape) -> Cost of one forward call of the algorithm that the impls follow
    cascade   the algorithm as einsums, for counting passes (analysis/passes.py)
    example   (Sizes) -> Example: a valid call, for the contract
    variants  further examples by name
    """

    name: str
    impls: Mapping[str, Impl]
    auto: tuple[str, ...]
    patterns: frozenset[str]
    example: Callable[[Sizes], Example]
    cost: Callable[[Shape], Cost]
    masks: bool = False
    state: Callable[[Shape], State] | None = None
    cache: bool = False
    grid: bool = False
    handmade: frozenset[str] = frozenset()
    cascade: str = ""
    variants: Mapping[str, Callable[[Sizes], Example]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        assert "reference" in self.impls and set(self.auto) <= set(self.impls), f"{self.name}: auto names unknown impls"
        assert self.patterns and self.patterns <= set(PATTERNS), f"{self.name}: patterns are {set(PATTERNS)}"

    def choose(self, impl: str, shape: Shape, mask: Bound) -> Choice:
        """The implementation for a call; a named one that cannot run refuses, nothing is replaced silently."""
        passed_over = {}
        for name in self.auto if impl == "auto" else (impl,):
            if name not in self.impls:
                raise checks.refuse(self.name, f"impl {name!r} does not exist", f"use one of {['auto', *self.impls]}")
            why = self.impls[name].refuses(shape, mask)
            if why is None and impl == "auto":
                why = self.impls[name].declines(shape, mask)
            if why is None:
                choice = Choice(self.name, impl, name, passed_over, shape, mask, self.cost)
                if (made := _choices.get()) is not None:
                    made.append(choice)
                return choice
            passed_over[name] = why
        reasons = ", ".join(f"{name}: {why}" for name, why in passed_over.items())
        raise checks.refuse(self.name, f"impl {impl!r} cannot run ({reasons})", f"use one of {['auto', *self.impls]}")

    def run(
        self,
        impl: str,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        mask: Mask = None,
        scale: float | None = None,
        state: State | None = None,
        cu_seqlens: Tensor | tuple[Tensor, Tensor] | None = None,
        per_query: Mapping[str, Tensor] | None = None,
        per_key: Mapping[str, Tensor] | None = None,
        options: Mapping[str, object] | None = None,
    ) -> Result:
        """Check, choose, bring one sequence at a time where the implementation wants that, and call it.

        per_query, per_key  tensors (B,T,...) that go along with q or k and are cut and packed with them
        options             everything else, handed through
        """
        checks.check_qkv(self.name, q, k, v)
        scale = checks.check_scale(self.name, scale, q.shape[3])
        heads = max(x.shape[2] for x in (q, k, v))
        per_query, per_key, options = dict(per_query or {}), dict(per_key or {}), dict(options or {})
        checks.check_companions(self.name, per_query, of=q, heads=heads)
        checks.check_companions(self.name, per_key, of=k, heads=heads)
        checks.check_options(self.name, options, q=q)
        bound, runs = self._place(q, k, heads, mask, cu_seqlens)
        causal = not isinstance(bound.expr, Everything)
        self._check_pattern(q, k, bound, runs, causal, state)
        companions = [*per_query.values(), *per_key.values()]
        grad = torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v, *companions))
        sequences = len(runs.cu_q) - 1 if runs else q.shape[0]
        shape = Shape(
            sequences,
            q.shape[1],
            k.shape[1],
            heads,
            k.shape[2],
            q.shape[3],
            v.shape[3],
            causal,
            q.dtype,
            q.device,
            grad,
        )
        chosen = self.impls[self.choose(impl, shape, bound).used]
        if self.state is not None and causal:
            start = self.state(shape)
            if state is not None:
                checks.check_state(self.name, state, start)
            state = start if state is None else state
        if not sequences:
            own = (x for x in options.values() if isinstance(x, Tensor))
            return nothing(q, v, heads, (k, *companions, *own)), state
        if runs is not None and self.masks and chosen.packed:
            # what padding holds must not matter, and 0 * NaN is NaN
            real_q, real_k = bound.q["segment"] >= 0, bound.k["segment"] >= 0
            q, k, v = _blank(q, real_q), _blank(k, real_k), _blank(v, real_k)
            per_query = {n: _blank(x, real_q) for n, x in per_query.items()}
            per_key = {n: _blank(x, real_k) for n, x in per_key.items()}
        if not chosen.grouped:
            q, k, v = (repeat(x, heads) for x in (q, k, v))
            per_query, per_key = ({n: repeat(x, heads) for n, x in c.items()} for c in (per_query, per_key))
        call = _Call(self, chosen, scale, causal, options)
        if runs is None or (self.masks and chosen.packed):
            return call(q, k, v, bound, state, {**per_query, **per_key})
        rows, length = q.shape[:2]
        q = runs.pack(q, side="q")
        k, v = runs.pack(k, side="k"), runs.pack(v, side="k")
        per_query = {n: runs.pack(x, side="q") for n, x in per_query.items()}
        per_key = {n: runs.pack(x, side="k") for n, x in per_key.items()}
        if chosen.packed:
            o, state = call(q, k, v, bound, state, {**per_query, **per_key}, cu_seqlens=runs.cu_q)
        else:
            o, state = call.each(q, k, v, bound, runs, state, per_query, per_key)
        return runs.unpack(o, rows, length), state

    def _place(
        self, q: Tensor, k: Tensor, heads: int, mask: Mask, cu_seqlens: Tensor | tuple[Tensor, Tensor] | None
    ) -> tuple[Bound, varlen.Runs | None]:
        """The mask on its tokens, and the sequences when there are several."""
        if cu_seqlens is None:
            bound = bind(mask, q.shape[1], k.shape[1], device=q.device)
            bound.check(q.shape[0], heads)
            return bound, varlen.from_segments(bound, q.shape[0]) if bound.segmented else None
        if isinstance(mask, (Bound, Tensor)):
            raise checks.refuse(
                self.name, "cu_seqlens beside a mask with its own tokens", "give these a segment instead"
            )
        pair = isinstance(cu_seqlens, tuple) and len(cu_seqlens) == 2
        cu_q, cu_k = cu_seqlens if pair else (cu_seqlens, cu_seqlens)
        checks.check_cu_seqlens(self.name, cu_q, "q", q)
        checks.check_cu_seqlens(self.name, cu_k, "k", k)
        if len(cu_q) != len(cu_k):
            raise checks.refuse(
                self.name, f"cu_seqlens of {len(cu_q) - 1} and {len(cu_k) - 1} sequences", "give as many"
            )
        rule = EVERYTHING if mask is None else mask
        tokens = Tokens.packed(cu_q.to(q.device))
        bound = rule.on(tokens) if cu_q is cu_k else rule.on(tokens, Tokens.packed(cu_k.to(q.device)))
        bound.check(1, heads)
        return bound, varlen.from_cu_seqlens(cu_q.to(q.device), cu_k.to(q.device))

    def _check_pattern(
        self, q: Tensor, k: Tensor, bound: Bound, runs: varlen.Runs | None, causal: bool, state: State | None
    ) -> None:
        # an operator that follows no mask takes the queries for the last tokens of the keys
        last = self.masks or not causal or varlen.queries_last(bound, runs, q.shape[0])
        cross = not last or q.shape[1] != k.shape[1]
        if not self.masks and not isinstance(bound.expr, (Everything, Causal)):
            raise checks.refuse(
                self.name, f"it cannot follow a mask of {type(bound.expr).__name__}", "pass None or CAUSAL"
            )
        wanted = ("C" if causal else "N") + ("C" if cross else "S")
        # a mask with structure is noncausal or causal as it likes, and an operator with any mask supports it
        if wanted not in self.patterns and not (self.masks and not isinstance(bound.expr, (Everything, Causal))):
            able = ", ".join(PATTERNS[p] for p in PATTERNS if p in self.patterns)
            raise checks.refuse(self.name, f"{PATTERNS[wanted]} attention is not defined for it", f"it is for {able}")
        if state is not None and (self.state is None or not causal):
            raise checks.refuse(self.name, "it keeps no state without a causal mask", "leave the state out")
        if not self.masks and causal:
            checks.check_order(self.name, bound, last=last)


class _Call:
    """One implementation with everything that does not change between sequences."""

    def __init__(self, op: Op, impl: Impl, scale: float, causal: bool, options: Mapping[str, object]) -> None:
        self.op, self.impl, self.scale, self.causal, self.options = op, impl, scale, causal, options

    def __call__(
        self, q: Tensor, k: Tensor, v: Tensor, bound: Bound, state: State | None, companions: Mapping[str, Tensor],
        cu_seqlens: Tensor | None = None,
    ) -> Result:  # fmt: skip
        more: dict[str, object] = {"mask": bound} if self.op.masks else {"causal": self.causal}
        if self.impl.packed and not self.op.masks:
            more["cu_seqlens"] = cu_seqlens
        # autocast would round the float32 sums and states of a bfloat16 call back to bfloat16
        with torch.autocast(q.device.type, enabled=False):
            return self.impl.call(q, k, v, scale=self.scale, state=state, **more, **companions, **self.options)

    def each(
        self, q: Tensor, k: Tensor, v: Tensor, bound: Bound, runs: varlen.Runs, state: State | None,
        per_query: Mapping[str, Tensor], per_key: Mapping[str, Tensor],
    ) -> Result:  # fmt: skip
        """Sequence after sequence."""
        outputs, states = [], []
        ends_q, ends_k = runs.cu_q.tolist(), runs.cu_k.tolist()
        for n in range(len(ends_q) - 1):
            mine, theirs = slice(*ends_q[n : n + 2]), slice(*ends_k[n : n + 2])
            companions = {name: x[:, mine] for name, x in per_query.items()}
            companions |= {name: x[:, theirs] for name, x in per_key.items()}
            here = None if state is None else {name: x[n : n + 1] for name, x in state.items()}
            o, after = self(q[:, mine], k[:, theirs], v[:, theirs], _part(bound, runs, mine, theirs), here, companions)
            outputs.append(o)
            states.append(after)
        first = states[0]
        joined = None if first is None else {name: torch.cat([s[name] for s in states]) for name in first}
        return torch.cat(outputs, 1), joined


def _part(bound: Bound, runs: varlen.Runs, mine: slice, theirs: slice) -> Bound:
    """The mask of one sequence."""

    def cut(tokens: Tokens, index: Tensor | None, place: slice) -> Tokens:
        if index is None:
            return tokens.take(place)
        row = int(index[place.start]) // tokens.length
        return tokens.row(row).take(index[place] % tokens.length)

    q = cut(bound.q, runs.q_index, mine)
    return Bound(bound.expr, q, q if bound.k is bound.q else cut(bound.k, runs.k_index, theirs))


def nothing(q: Tensor, v: Tensor, heads: int, others: Iterable[Tensor]) -> Tensor:
    """What queries without any key get: zeros, with gradients of zeros for all that was given."""
    zero = sum(x[None][:0].sum() for x in (q, v, *others))
    return q.new_zeros(*q.shape[:2], heads, v.shape[3]) + zero


def repeat(x: Tensor, heads: int) -> Tensor:
    """(B,T,h,...) with each head as often as heads of the whole read it."""
    return x.repeat_interleave(heads // x.shape[2], 2) if x.ndim > 2 and x.shape[2] != heads else x


def _blank(x: Tensor, real: Tensor) -> Tensor:
    return torch.where(real.reshape(*real.shape, *[1] * (x.ndim - 2)), x, x.new_zeros(()))
