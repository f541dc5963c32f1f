"""What every attention operator promises; the members are whatever stands in kernels/softmax, linear and sparse.

The sizes are tiny and odd, the widths of keys and values differ, the arithmetic is float64. What makes an operator the
one of its paper is tested in its own file; here each member is held to its own reference and to its record.
"""

from __future__ import annotations

import importlib
import inspect
import itertools
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace

import pytest
import torch
from attending import MEMBERS, SPLIT, Call, accepts, calls, close, remembers, with_gradients
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException, FakeTensorMode

from gnomon.kernels.mask import CAUSAL, EVERYTHING, Mask, bind
from gnomon.kernels.masks.atoms import part
from gnomon.kernels.masks.tokens import Tokens
from gnomon.kernels.members import Member
from gnomon.kernels.op import Impl, Result, Shape, State, recording

# FlexAttention says that it is slow when it is not compiled; here it is only compared
pytestmark = pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")


NUMBERS = (DataDependentOutputException, DynamicOutputShapeException)
"""What a call with tensors without numbers may end in."""


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
def test_heads_of_different_numbers(call: Call):
    """Fewer of some than of others is what repeating them gives, also where the values have most; or is refused."""
    inputs = call.inputs(call.sizes(batch=1))
    for numbers in ((4, 2, 1), (4, 1, 2), (2, 2, 4), (2, 4, 4)):
        few = {name: inputs.qkv[name][:, :, :n] for name, n in zip("qkv", numbers)}
        wide = {name: x.repeat_interleave(4 // x.shape[2], 2) for name, x in few.items()}
        for impl in call.member.op.impls:
            if inputs.able(impl, grad=False):
                try:
                    o, _ = inputs.run(few, impl=impl)
                except ValueError as told:
                    assert str(told).startswith(f"{call.member.op.name}: ") and "heads" in str(told)
                else:
                    close(o, inputs.run(wide, impl="reference")[0])


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
def test_packed_equals_separate_in_gradients(call: Call):
    inputs = call.inputs(call.sizes(batch=1))
    length = inputs.qkv["q"].shape[1]
    ends = [0, SPLIT, SPLIT + 1, length]
    given = {name: x for name, x in inputs.tensors().items() if x.dtype.is_floating_point}
    moving = inputs.cut(0, length).keys() & given.keys()

    def gradients(run: Callable[[dict[str, Tensor]], Tensor]) -> dict[str, Tensor]:
        leaves = {name: x.clone().requires_grad_() for name, x in given.items()}
        o = run(leaves)
        direction = torch.randn(o.shape, generator=torch.Generator().manual_seed(1), dtype=o.dtype)
        found = torch.autograd.grad(o, list(leaves.values()), direction, allow_unused=True)
        return {n: torch.zeros_like(x) if g is None else g for (n, x), g in zip(leaves.items(), found)}

    def separate(leaves: dict[str, Tensor]) -> Tensor:
        parts = []
        for a, b in itertools.pairwise(ends):
            part = {name: x[:, a:b] if name in moving else x for name, x in leaves.items()}
            parts.append(inputs.run({**inputs.cut(a, b), **part}, impl="reference")[0])
        return torch.cat(parts, 1)

    truth, packed = gradients(separate), torch.tensor(ends)
    for impl in call.member.op.impls:
        if inputs.able(impl, grad=True, mask=bind(call.mask, length, length)):
            close(gradients(lambda leaves, impl=impl: inputs.run(leaves, cu_seqlens=packed, impl=impl)[0]), truth)


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


@calls("NS CS", needs=accepts("cu_seqlens"))
def test_nothing_but_padding(call: Call):
    """Zeros with gradients of zeros, and the states of no sequence."""
    inputs = call.inputs(call.sizes())
    whole, state = inputs.run()
    padding = Tokens.padded(torch.zeros(2, whole.shape[1], dtype=torch.bool))
    mask = (CAUSAL if call.causal else EVERYTHING).on(padding)
    for impl in call.member.op.impls:
        if inputs.able(impl, grad=True, mask=mask):
            moving = {**inputs.on_queries(), **inputs.on_keys()}
            leaves = {name: torch.full_like(x, torch.nan).requires_grad_() for name, x in moving.items()}
            o, empty = inputs.run(leaves, mask=mask, impl=impl)
            assert o.shape == whole.shape and not bool(o.any())
            for name, g in zip(leaves, torch.autograd.grad(o.sum(), list(leaves.values()))):
                assert not bool(g.any()), f"{impl}: {name} has a gradient"
            if call.member.op.state is not None and state is not None:
                assert {name: x.shape for name, x in empty.items()} == {n: (0, *x.shape[1:]) for n, x in state.items()}


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


@pytest.mark.parametrize("member", MEMBERS, ids=lambda member: member.op.name)
def test_twins_are_there(member: Member):
    """What is imported only on a GPU can be imported without one."""
    assert member.op.handmade <= set(member.op.impls)
    for name, impl in member.op.impls.items():
        assert (name == "triton") == (impl.twin is not None)
        if impl.twin is not None:
            module, _, function = impl.twin.partition(":")
            assert callable(getattr(importlib.import_module(f"gnomon.kernels.triton_ops.{module}"), function))


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


@calls(needs=lambda member: member.op.masks)
def test_what_a_call_keeps_serves_later_ones(call: Call):
    """Of a call in inference mode, whose tensors no backward pass takes, and of one whose tensors hold no numbers."""
    inputs = call.inputs(call.sizes())
    lengths = [inputs.qkv[name].shape[1] for name in "qk"]
    for number, impl in enumerate(call.member.op.impls):
        # one group of all tokens, of a size that no other test has: nothing is kept of it yet
        groups = [part("p", size + number) for size in (900, 950)]
        new, other = (group if call.mask is None else call.mask & group for group in groups)
        if not inputs.able(impl, grad=True, mask=bind(new, *lengths)):
            continue
        try:
            with torch.inference_mode():
                o, _ = inputs.run(mask=new, impl=impl)
        except ValueError as told:
            # joined with the operator's own rule it is no equivalence any more
            assert f"impl {impl!r} cannot run" in str(told)
            continue
        close(with_gradients(inputs, mask=new, impl=impl)[0], o)
        # some read how many there are of something, which is a number
        with FakeTensorMode(allow_non_fake_inputs=True) as mode, suppress(*NUMBERS):
            inputs.run({name: mode.from_tensor(x) for name, x in inputs.tensors().items()}, mask=other, impl=impl)
        close(inputs.run(mask=other, impl=impl)[0], o)


def leaks(v: Tensor, o: Tensor, state: State) -> Result:
    """Every token sees a little of the last value."""
    return o + 1e-3 * v[:, -1:].mean(), state


def misleads(v: Tensor, o: Tensor, state: State) -> Result:
    """Right numbers, gradients of one and a half."""
    return o + 0.5 * (o - o.detach()), state


def forgets(v: Tensor, o: Tensor, state: State) -> Result:
    return o, {name: torch.zeros_like(x) for name, x in state.items()}


@pytest.mark.parametrize(
    ("fault", "contract"),
    [
        (leaks, test_causal),
        (leaks, test_every_implementation_equals_the_reference),
        (leaks, test_packed_equals_separate),
        (leaks, test_packed_equals_separate_in_gradients),
        (misleads, test_every_implementation_equals_the_reference),
        (misleads, test_packed_equals_separate_in_gradients),
        (forgets, test_state_continues_the_sequence),
    ],
)
def test_the_contract_catches_a_broken_operator(
    fault: Callable[[Tensor, Tensor, State], Result], contract: Callable[[Call], None]
):
    """One whose chunks are wrong, that is called as `plain`; without the fault it passes."""
    (whole,) = (member for member in MEMBERS if member.op.name == "plain")

    def of(fault: Callable[[Tensor, Tensor, State], Result]) -> Call:
        def chunk(q: Tensor, k: Tensor, v: Tensor, **how: object) -> Result:
            o, state = whole.op.impls["chunk"].call(q, k, v, **how)
            return fault(v, o, state)

        op = replace(whole.op, impls={"reference": whole.op.impls["reference"], "chunk": Impl(chunk)}, auto=("chunk",))

        def plain(
            q: Tensor, k: Tensor, v: Tensor, *, mask: Mask = None, scale: float | None = None,
            state: State | None = None, cu_seqlens: Tensor | None = None, impl: str = "auto",
        ) -> Result:  # fmt: skip
            options = {"block": 4}
            return op.run(impl, q, k, v, mask=mask, scale=scale, state=state, cu_seqlens=cu_seqlens, options=options)

        return Call(replace(whole, op=op, function=plain), "CS", op.example, "")

    contract(of(lambda v, o, state: (o, state)))
    with pytest.raises(AssertionError):
        contract(of(fault))
