"""What every attention operator refuses, in one line: other tensors, states, options and patterns than it is for."""

from __future__ import annotations

import inspect

import pytest
import torch
from attending import MEMBERS, SPLIT, Call, accepts, calls, close
from torch import Tensor

from gnomon.kernels.mask import CAUSAL
from gnomon.kernels.masks.tokens import Tokens
from gnomon.kernels.members import Member

# FlexAttention says that it is slow when it is not compiled; here it is only compared
pytestmark = pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")


@calls("CS", needs=lambda member: not member.op.masks)
def test_queries_elsewhere_than_the_keys_are_refused(call: Call):
    """An operator that follows no mask takes the queries for the last of the keys; tokens that say so are welcome."""
    inputs = call.inputs(call.sizes(batch=1))
    o, _ = inputs.run()
    length = o.shape[1]
    keys = Tokens.line(length)
    close(inputs.run(mask=CAUSAL.on(Tokens.line(length), keys))[0], o)
    wrong: list[dict[str, object]] = [{"mask": CAUSAL.on(Tokens.line(length, start=SPLIT), keys)}]
    if accepts("cu_seqlens")(call.member):
        wrong.append({"cu_seqlens": (torch.tensor([0, 2, length]), torch.tensor([0, 3, length]))})
    for how in wrong:
        with pytest.raises(ValueError, match=rf"^{call.member.op.name}: .*(cross|not the last of the keys)"):
            inputs.run(**how)


@calls("CS", needs=lambda member: member.op.state is not None)
def test_a_state_of_another_type_is_refused(call: Call):
    """It would decide in which type the call computes. A narrow call keeps, and takes, a float32 state."""
    for dtype, other in ((torch.float64, torch.float32), (torch.float32, torch.bfloat16), (torch.bfloat16, None)):
        inputs = call.inputs(call.sizes(dtype=dtype))
        _, state = inputs.run(impl="reference")
        inputs.run(state=state)
        assert {x.dtype for x in state.values()} == {torch.promote_types(dtype, torch.float32)}
        wrong = {name: x.to(other or dtype) for name, x in state.items()}
        with pytest.raises(ValueError, match=rf"^{call.member.op.name}: state '\w+' is {other or dtype}; convert"):
            inputs.run(state=wrong)


@calls("CS", needs=accepts("state"))
def test_a_state_of_another_call_is_refused(call: Call):
    """Of fewer rows, of narrower values, on another device, or with parts that are missing."""
    inputs = call.inputs(call.sizes())
    _, state = inputs.run()
    inputs.run(state=state)
    for wrong in (
        {name: x[:1] for name, x in state.items()},
        {name: x[..., :-1] if x.ndim > 1 else x[:1] for name, x in state.items()},
        {name: x.to("meta") for name, x in state.items()},
        {name: x.to(torch.bfloat16) for name, x in state.items()},
        dict(list(state.items())[1:]),
        dict.fromkeys(state, 1),
    ):
        with pytest.raises(ValueError, match=rf"^{call.member.op.name}: .*state [^\n]*$"):
            inputs.run(state=wrong)


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
        {"scale": "small"},
        *({"scale": x} for x in ("0.5", True, torch.ones(2), torch.tensor(True), torch.tensor(0.5).requires_grad_())),
        {"q": q[0, 0, 0]},
        # parameters that are no single number, on a device where q is not
        *({name: x.to("meta")} for name, x in inputs.tensors().items() if x.ndim and name not in "qkv"),
    ]
    asked = inspect.signature(call.member.function).parameters
    if "block" in asked and call.member.family == "linear":
        wrong += [{"block": 0}]
    wrong += [{name: -1e-3} for name in ("eps", "tiny") if name in asked]
    if accepts("cu_seqlens")(call.member):
        wrong += [{"cu_seqlens": [0, SPLIT, q.shape[1]]}, {"cu_seqlens": (0, SPLIT, q.shape[1])}]
    for change in wrong:
        tensors = {name: x for name, x in change.items() if isinstance(x, Tensor) and name != "scale"}
        how = {name: x for name, x in change.items() if name not in tensors}
        with pytest.raises(ValueError) as told:
            inputs.run(tensors, **how)
        assert str(told.value).startswith(f"{call.member.op.name}: ") and "\n" not in str(told.value)


@calls()
def test_values_of_other_types_are_refused(call: Call):
    """Whatever the signature asks for: `@typed` in the file sees to that."""
    inputs = call.inputs(call.sizes())
    for name, asked in inspect.signature(call.member.function).parameters.items():
        optional = name == "mask" or "None" in asked.annotation
        for value in (object(), {}, *([] if optional else [None])):
            with pytest.raises(ValueError, match=rf"^({call.member.op.name}|mask): [^\n]*; [^\n]*$"):
                inputs.run(**{name: value})


@pytest.mark.parametrize("member", MEMBERS, ids=lambda member: member.op.name)
def test_unsupported_patterns_are_refused(member: Member):
    """A pattern that the record does not name is refused, and not computed as another one."""
    label, example = "", member.op.example
    for pattern in {"NS", "CS", "NC", "CC"} - member.op.patterns:
        inputs = Call(member, pattern, example, label)
        with pytest.raises(ValueError, match=f"^({member.op.name}|mask): "):
            inputs.inputs(inputs.sizes()).run()
