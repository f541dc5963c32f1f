"""Calls of attention operators for the bench: inputs of any length, an output, and gradients of all that is learned.

Shapes: B batch, T tokens, H heads, D width.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gnomon.kernels.example import Example, Sizes
from gnomon.kernels.mask import CAUSAL
from gnomon.kernels.members import Member
from gnomon.kernels.op import Choice, Result, recording

# What a pattern has to be told of its size, where its own default does not say; the papers' values.
_OPTIONS: Mapping[str, Callable[[int, tuple[int, int]], dict[str, Any]]] = {
    "neighborhood": lambda length, grid: {"grid": grid, "window": tuple(min(13, side) for side in grid)},
    "clear": lambda length, grid: {"grid": grid, "radius": 16},
    "axial": lambda length, grid: {"grid": grid},
    "agent": lambda length, grid: {"grid": grid},
    # with keys of any length the state of a delta rule grows without bound
    **dict.fromkeys(("deltanet", "gated_deltanet", "kda"), lambda length, grid: {"normalize": True}),
    "radial": lambda length, grid: {"grid": (length // 64, 8, 8)},
    "s2": lambda length, grid: {"group": length // 4},
    "blockrank": lambda length, grid: {"blocks": torch.arange(length) // 128},
}

# With so few tokens as are checked these would hide nothing: options with which they do.
_CHECKED: Mapping[str, Callable[[int, torch.dtype], dict[str, Any]]] = {
    "power": lambda length, dtype: {"block": length // 16},
    "blockrank": lambda length, dtype: {"blocks": torch.arange(length) // (length // 8)},
    # the forced blocks alone in low precision: its means are rounded, so that the reference would choose others
    "infllm_v2": lambda length, dtype: {
        "dense_length": 0, "block": length // 8, "local": 1, "top": 4 if dtype == torch.float32 else 3
    },
}  # fmt: skip

NARROW = {"based": 16}
"""Of operators that are for narrow queries and keys: how wide these are; values are as wide as everyone's."""


@dataclass(frozen=True)
class Setting:
    batch: int
    heads: int
    width: int
    dtype: torch.dtype
    device: torch.device
    backward: bool
    patience: float
    """Seconds that one call may take at most: longer lengths of an operator that is slower are left out."""


class Timed:
    """An output, and the gradients of all that is learned from one direction of it; `forward_only`: why it has none."""

    def __init__(self, output: Callable[[], Tensor], learned: Sequence[Tensor], forward_only: str = "") -> None:
        self.output, self.learned, self.forward_only = output, list(learned), forward_only
        self._grad: Tensor | None = None

    def forward(self) -> Tensor:
        with torch.no_grad():
            return self.output()

    def both(self) -> None:
        self._run(torch.randn_like)

    def checked(self, gradients: int) -> list[Tensor | None]:
        """The output and the gradients of the first so many tensors, from a direction that is the same for all."""
        o, found = self._run(_signs)
        return [o.detach(), *found[:gradients]]

    def _run(self, direction: Callable[[Tensor], Tensor]) -> tuple[Tensor, tuple[Tensor | None, ...]]:
        inputs = [x.requires_grad_(True) for x in self.learned]
        try:
            o = self.output()
            if self._grad is None:
                self._grad = direction(o)
            # what only selects has no gradient
            return o, torch.autograd.grad(o, inputs, self._grad, allow_unused=True)
        finally:
            for x in inputs:
                x.requires_grad_(False)


def _signs(o: Tensor) -> Tensor:
    """Of one draw for every device, and exact in every type."""
    signs = 2 * torch.randint(0, 2, o.shape, generator=torch.Generator().manual_seed(1)) - 1
    return signs.to(o)


class Call(Timed):
    """Of one of our operators. Its numbers depend on the length and the dtype alone; `wide`: the same in float64.

    other                  options in place of those that are timed
    qkv, tensors, options  what it is called with; of the tensors, some are `moving` along the tokens
    chosen                 what it ran as, so many `times`
    """

    def __init__(
        self, member: Member, length: int, causal: bool, setting: Setting, impl: str, *, wide: bool = False,
        other: Mapping[str, Any] | None = None,
    ) -> None:  # fmt: skip
        self.member, self.causal = member, causal

        def put(x: Any) -> Any:
            if not isinstance(x, Tensor):
                return x
            return x.to(setting.device, torch.float64 if wide and x.is_floating_point() else None)

        qkv, moving, fixed, options = _arguments(member, sizes(length, setting, NARROW.get(member.op.name)))
        self.qkv = [put(x) for x in qkv]
        self.moving = {name: put(x) for name, x in moving.items()}
        self.fixed = {name: put(x) for name, x in fixed.items()}
        self.options = {name: put(x) for name, x in {**options, **(other or {})}.items()}
        self.asked = {"mask": CAUSAL if causal else None, "impl": impl}
        super().__init__(
            lambda: self._of(slice(None))[0], [x for x in (*self.qkv, *self.tensors.values()) if x.is_floating_point()]
        )
        self.chosen: Choice | None = None
        self.times = 1

    @property
    def tensors(self) -> dict[str, Tensor]:
        return {**self.moving, **self.fixed}

    def _of(self, tokens: slice, **more: Any) -> Result:
        """Of some of the tokens."""
        qkv, moving = [x[:, tokens] for x in self.qkv], {name: x[:, tokens] for name, x in self.moving.items()}
        return self.member.function(*qkv, **moving, **self.fixed, **self.options, **self.asked, **more)

    def step(self) -> Timed | None:
        """The last token alone, with what is remembered of those before it; None of operators that remember nothing."""
        if not self.causal or "state" not in inspect.signature(self.member.function).parameters:
            return None
        with torch.no_grad():
            _, state = self._of(slice(-1))
        return Timed(lambda: self._of(slice(-1, None), state=state)[0], ())

    def forward(self) -> Tensor:
        if self.chosen is not None:
            return super().forward()
        with recording() as choices:
            found = super().forward()
        self.chosen, self.times = choices[0], len(choices)
        return found


def is_pattern(member: Member) -> bool:
    """Softmax attention under a mask that depends on no data, and nothing else."""
    return member.family == "sparse" and "flex" in member.op.impls


def checks(member: Member, length: int, dtype: torch.dtype) -> list[dict[str, Any]]:
    """Options that a check of so many tokens takes in place of those that are timed: none, and what makes it sparse."""
    name = member.op.name
    return [{}, _CHECKED[name](length, dtype)] if name in _CHECKED else [{}]


def sizes(length: int, setting: Setting, width: int | None = None) -> Sizes:
    return Sizes(
        torch.Generator().manual_seed(0),
        setting.dtype,
        batch=setting.batch,
        queries=length,
        keys=length,
        heads=setting.heads,
        key_heads=setting.heads,
        width=width or setting.width,
        value_width=setting.width,
        grid=grid(length),
    )


def grid(length: int) -> tuple[int, int]:
    """The squarest grid of so many tokens."""
    side = math.isqrt(length)
    while length % side:
        side -= 1
    return side, length // side


def _arguments(
    member: Member, sizes: Sizes
) -> tuple[list[Tensor], dict[str, Tensor], dict[str, Tensor], dict[str, Any]]:
    """q, k, v; the tensors beside them that are learned, of every token and of none; and the rest."""
    example: Example = member.op.example(sizes)
    own = sizes.qkv()
    qkv = [a if b is None else b for a, b in zip(own, (example.q, example.k, example.v))]
    # agent's tables are an option, and of the size of a test
    fixed = {} if member.op.name == "agent" else example.parameters
    # options of an example fit tests; at length the operator's own defaults are meant
    must = {
        name
        for name, parameter in inspect.signature(member.function).parameters.items()
        if parameter.default is inspect.Parameter.empty
    }
    options = {name: value for name, value in example.options.items() if name in must}
    if member.op.name in _OPTIONS:
        options |= _OPTIONS[member.op.name](sizes.keys, sizes.grid)
    return qkv, {**example.per_query, **example.per_key}, dict(fixed), options
