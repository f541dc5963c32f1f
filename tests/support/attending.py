"""Calls of the attention operators at tiny and odd sizes, for the contracts."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from gnomon.kernels.example import Example, Sizes
from gnomon.kernels.mask import CAUSAL, Bound, Mask, bind
from gnomon.kernels.members import Member, members
from gnomon.kernels.op import Shape, State

MEMBERS = members()
SPLIT = 5


@dataclass(frozen=True)
class Call:
    """One way to call one operator: an example of its own at given sizes, under one of its patterns."""

    member: Member
    pattern: str
    example: Callable[[Sizes], Example]
    label: str

    @property
    def causal(self) -> bool:
        return self.pattern[0] == "C"

    @property
    def mask(self) -> Mask:
        return CAUSAL if self.causal else None

    def sizes(self, *, dtype: torch.dtype = torch.float64, batch: int = 2, key_heads: int = 4, seed: int = 0) -> Sizes:
        grid = (3, 5) if self.member.op.grid else (13,)
        keys = 15 if self.member.op.grid else 13
        queries = keys if self.pattern[1] == "S" else 6
        generator = torch.Generator().manual_seed(seed)
        return Sizes(generator, dtype, batch, queries, keys, key_heads=key_heads, grid=grid)

    def inputs(self, sizes: Sizes) -> Inputs:
        example = self.example(sizes)
        q, k, v = sizes.qkv()
        given = [own if mine is None else mine for own, mine in zip((q, k, v), (example.q, example.k, example.v))]
        return Inputs(dict(zip("qkv", given)), example, self)


@dataclass(frozen=True)
class Inputs:
    qkv: Mapping[str, Tensor]
    example: Example
    call: Call

    def on_queries(self) -> dict[str, Tensor]:
        return {"q": self.qkv["q"], **self.example.per_query}

    def on_keys(self) -> dict[str, Tensor]:
        return {"k": self.qkv["k"], "v": self.qkv["v"], **self.example.per_key}

    def tensors(self) -> dict[str, Tensor]:
        return {**self.on_queries(), **self.on_keys(), **self.example.parameters}

    def run(self, tensors: Mapping[str, Tensor] | None = None, **how: object) -> tuple[Tensor, State | None]:
        arguments = {**self.tensors(), **(tensors or {}), **self.example.options, "mask": self.call.mask, **how}
        q, k, v = (arguments.pop(name) for name in "qkv")
        return self.call.member.function(q, k, v, **arguments)

    def cut(self, start: int, stop: int) -> dict[str, Tensor]:
        return {name: x[:, start:stop] for name, x in {**self.on_queries(), **self.on_keys()}.items()}

    def able(self, impl: str, *, grad: bool, mask: Mask = None) -> bool:
        """Whether an implementation takes this call; the rest of the record is not asked."""
        q, k, v = self.qkv.values()
        shape = Shape(
            len(q),
            q.shape[1],
            k.shape[1],
            q.shape[2],
            k.shape[2],
            q.shape[3],
            v.shape[3],
            self.call.causal,
            q.dtype,
            grad=grad,
        )
        bound = mask if isinstance(mask, Bound) else bind(self.call.mask, q.shape[1], k.shape[1])
        return self.call.member.op.impls[impl].refuses(shape, bound) is None


def calls(only: str = "NS CS NC CC", *, needs: Callable[[Member], bool] = lambda member: True) -> pytest.MarkDecorator:
    found = []
    for member in filter(needs, MEMBERS):
        for label, example in {"": member.op.example, **member.op.variants}.items():
            found += [Call(member, p, example, label) for p in only.split() if p in member.op.patterns]
    names = [f"{c.member.family}-{c.member.op.name}{'-' + c.label if c.label else ''}-{c.pattern}" for c in found]
    return pytest.mark.parametrize("call", found, ids=names)


def accepts(name: str) -> Callable[[Member], bool]:
    return lambda member: name in inspect.signature(member.function).parameters


def remembers(member: Member) -> bool:
    return member.op.state is not None or member.op.cache


def with_gradients(inputs: Inputs, **how: object) -> tuple[Tensor, State | None, dict[str, Tensor]]:
    """Outputs, and the gradients of a random projection of outputs and final state."""
    leaves = {
        name: x.detach().clone().requires_grad_(x.dtype.is_floating_point) for name, x in inputs.tensors().items()
    }
    o, state = inputs.run(leaves, **how)
    generator = torch.Generator().manual_seed(1)
    results = [o, *((state or {}).values())]
    loss = sum((x * torch.randn(x.shape, generator=generator, dtype=torch.float64).to(x.dtype)).sum() for x in results)
    wanted = {name: x for name, x in leaves.items() if x.requires_grad}
    given = torch.autograd.grad(loss, list(wanted.values()), allow_unused=True)
    return (
        o.detach(),
        state,
        {name: torch.zeros_like(x) if g is None else g for (name, x), g in zip(wanted.items(), given)},
    )


def close(a: object, b: object, tolerance: float = 1e-9) -> None:
    torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)
