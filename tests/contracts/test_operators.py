"""What every attention operator promises; the members are whatever stands in kernels/softmax, linear and sparse.

The sizes are tiny and odd, the widths of keys and values differ, the arithmetic is float64. What makes an operator the
one of its paper is tested in its own file; here each member is held to its own reference and to its record.
"""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from gnomon.kernels.example import Example, Sizes
from gnomon.kernels.mask import CAUSAL, Bound, Mask, bind
from gnomon.kernels.masks.tokens import Tokens
from gnomon.kernels.members import Member, members
from gnomon.kernels.op import Shape, State, recording

# FlexAttention says that it is slow when it is not compiled; here it is only compared
pytestmark = pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")

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


def test_members_are_found():
    assert {"exact", "plain"} <= {member.op.name for member in MEMBERS}


@calls()
def test_every_implementation_equals_the_reference(call: Call):
    """Outputs, final state and all gradients, with as many key heads as query heads and with fewer."""
    for key_heads in (4, 2):
        inputs = call.inputs(call.sizes(key_heads=key_heads))
        o, state, gradients = with_gradients(inputs, impl="reference")
        assert bool(o.isfinite().all())
        for impl in call.member.op.impls:
            if impl != "reference" and inputs.able(impl, grad=True):
                theirs = with_gradients(inputs, impl=impl)
                close(theirs[0], o)
                close(theirs[2], gradients)
                if state is not None:
                    close(theirs[1], state)
            elif inputs.able(impl, grad=False):
                close(inputs.run(impl=impl)[0], o)


@calls()
def test_float32(call: Call):
    exact = call.inputs(call.sizes(seed=2)).run(impl="reference")[0]
    single = call.inputs(call.sizes(seed=2, dtype=torch.float32))
    for impl in call.member.op.impls:
        if single.able(impl, grad=False):
            o, _ = single.run(impl=impl)
            assert o.dtype == torch.float32
            close(o.double(), exact, 2e-4)


@calls()
def test_row_of_a_batch_equals_the_row_alone(call: Call):
    inputs = call.inputs(call.sizes(batch=3))
    alone = {name: x[1:2] for name, x in {**inputs.on_queries(), **inputs.on_keys()}.items()}
    close(inputs.run(alone)[0], inputs.run()[0][1:2])


@calls("CS", needs=lambda member: remembers(member) and accepts("state")(member))
def test_state_continues_the_sequence(call: Call):
    """Prefix then suffix, and then token by token, is the whole."""
    inputs = call.inputs(call.sizes())
    whole, final = inputs.run(impl="reference")
    length = whole.shape[1]
    for impl in call.member.op.impls:
        if not inputs.able(impl, grad=False):
            continue
        for ends in ([0, SPLIT, length], list(range(length + 1))):
            state, parts = None, []
            for start, stop in itertools.pairwise(ends):
                o, state = inputs.run(inputs.cut(start, stop), state=state, impl=impl)
                parts.append(o)
            close(torch.cat(parts, 1), whole)
            close(state, final)


@calls("NS CS", needs=accepts("cu_seqlens"))
def test_packed_equals_separate(call: Call):
    inputs = call.inputs(call.sizes(batch=1))
    ends = [0, SPLIT, SPLIT + 1, inputs.qkv["q"].shape[1]]
    parts = [inputs.run(inputs.cut(a, b), impl="reference") for a, b in itertools.pairwise(ends)]
    for impl in call.member.op.impls:
        if inputs.able(impl, grad=False, mask=bind(call.mask, ends[-1], ends[-1])):
            o, state = inputs.run(cu_seqlens=torch.tensor(ends), impl=impl)
            close(o, torch.cat([o for o, _ in parts], 1))
            if state is not None:
                close(state, {name: torch.cat([s[name] for _, s in parts]) for name in state})


@calls("NS CS", needs=accepts("cu_seqlens"))
def test_padding_does_not_leak(call: Call):
    """Rows of different lengths, padding on either side and full of NaN: outputs, states and gradients are as alone."""
    inputs = call.inputs(call.sizes())
    length = inputs.qkv["q"].shape[1]
    valid = torch.ones(2, length, dtype=torch.bool)
    valid[0, SPLIT:] = False
    valid[1, :3] = False
    poisoned = {}
    for name, x in {**inputs.on_queries(), **inputs.on_keys()}.items():
        poisoned[name] = x.masked_fill(~valid.reshape(2, length, *[1] * (x.ndim - 2)), torch.nan)
    mask = (CAUSAL if call.causal else bind(None, length, length).expr).on(Tokens.padded(valid))
    alone = {}
    for row, (start, stop) in enumerate([(0, SPLIT), (3, length)]):
        alone[row] = inputs.run(
            {name: x[row : row + 1] for name, x in inputs.cut(start, stop).items()}, impl="reference"
        )
    for impl in call.member.op.impls:
        if not inputs.able(impl, grad=False, mask=mask):
            continue
        leaves = {name: x.clone().requires_grad_() for name, x in poisoned.items()}
        grad = inputs.able(impl, grad=True, mask=mask)
        o, state = inputs.run(leaves if grad else poisoned, mask=mask, impl=impl)
        close(o[0, :SPLIT], alone[0][0][0])
        close(o[1, 3:], alone[1][0][0])
        assert bool((o[~valid] == 0).all())
        if state is not None and call.member.op.state is not None:
            close(state, {name: torch.cat([alone[row][1][name] for row in (0, 1)]) for name in state})
        if grad:
            for name, g in zip(leaves, torch.autograd.grad(o.sum(), list(leaves.values()), allow_unused=True)):
                assert g is None or bool(g.isfinite().all()), f"the gradient of {name} is not finite"
                assert g is None or bool((g[~valid] == 0).all()), f"padding of {name} has a gradient"


@calls("CS")
def test_causal(call: Call):
    """The first outputs have exactly no gradient in anything later."""
    inputs = call.inputs(call.sizes())
    for impl in call.member.op.impls:
        if inputs.able(impl, grad=True):
            moving = {**inputs.on_queries(), **inputs.on_keys()}
            leaves = {name: x.clone().requires_grad_() for name, x in moving.items() if x.dtype.is_floating_point}
            o, _ = inputs.run(leaves, impl=impl)
            for name, g in zip(
                leaves, torch.autograd.grad(o[:, :SPLIT].sum(), list(leaves.values()), allow_unused=True)
            ):
                assert g is None or not bool(g[:, SPLIT:].any()), f"{impl}: {name} leaks"


@calls()
def test_handmade_gradients(call: Call):
    """Finite differences, where the backward was written by hand."""
    inputs = call.inputs(call.sizes(batch=1))
    for impl in call.member.op.handmade:
        if inputs.able(impl, grad=True):
            leaves = {
                name: x.clone().requires_grad_() for name, x in inputs.tensors().items() if x.dtype.is_floating_point
            }

            def run(*values: Tensor, names: tuple[str, ...] = tuple(leaves), impl: str = impl) -> tuple[Tensor, ...]:
                o, state = inputs.run(dict(zip(names, values)), impl=impl)
                return (o, *(x for x in (state or {}).values() if x.requires_grad))

            assert torch.autograd.gradcheck(run, tuple(leaves.values()), fast_mode=True)


@calls()
def test_record(call: Call):
    """The public signature is the common one; the choice of `auto` is on record; the cost grows with the length."""
    parameters = inspect.signature(call.member.function).parameters
    assert list(parameters)[:3] == ["q", "k", "v"]
    assert {"mask", "scale", "impl"} <= set(parameters)
    assert all(p.kind is p.KEYWORD_ONLY for p in list(parameters.values())[3:])
    inputs = call.inputs(call.sizes())
    with recording() as choices:
        inputs.run()
    assert choices and choices[0].op == call.member.op.name and choices[0].used in call.member.op.impls
    q, _k, v = inputs.qkv.values()
    shape = Shape(2, 256, 256, 4, 4, q.shape[3], v.shape[3], call.causal)
    small, large = (call.member.op.cost(s) for s in (shape, replace(shape, queries=512, keys=512)))
    assert 0 < small.operations < large.operations and 0 < small.bytes < large.bytes


@calls()
def test_refusals(call: Call):
    """Wrong input is told in one line that begins with the operator's name."""
    inputs = call.inputs(call.sizes())
    q, k, v = inputs.qkv.values()
    wrong: list[dict[str, object]] = [
        {"impl": "guess"},
        {"k": k.float()},
        {"k": k[:, :-1]},
        {"v": v[:1]},
        {"q": q[..., :-1]},
        {"q": q[0]},
        {"scale": float("nan")},
    ]
    for change in wrong:
        tensors = {name: x for name, x in change.items() if isinstance(x, Tensor)}
        how = {name: x for name, x in change.items() if not isinstance(x, Tensor)}
        with pytest.raises(ValueError) as told:
            inputs.run(tensors, **how)
        assert str(told.value).startswith(f"{call.member.op.name}: ") and "\n" not in str(told.value)


@pytest.mark.parametrize("member", MEMBERS, ids=lambda member: member.op.name)
def test_unsupported_patterns_are_refused(member: Member):
    """A pattern that the record does not name is refused, and not computed as another one."""
    label, example = "", member.op.example
    for pattern in {"NS", "CS", "NC", "CC"} - member.op.patterns:
        inputs = Call(member, pattern, example, label)
        with pytest.raises(ValueError, match=f"^({member.op.name}|mask): "):
            inputs.inputs(inputs.sizes()).run()
