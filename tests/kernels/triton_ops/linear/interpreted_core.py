"""Outputs, final states and all gradients of the kernels of the gated delta recurrence; run by test_core.py.

What the kernels write to is filled with NaN first. The truth is the recurrence token by token, in float64.
"""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor
from twins import DEVICE, EXACT, INTERPRETED, TOLERANCE

from gnomon.kernels.linear import base
from gnomon.kernels.linear.based import based
from gnomon.kernels.linear.gated_deltanet import gated_deltanet
from gnomon.kernels.linear.gla import gla
from gnomon.kernels.linear.hedgehog import hedgehog
from gnomon.kernels.linear.hgrn2 import hgrn2
from gnomon.kernels.linear.lightning import lightning
from gnomon.kernels.mask import CAUSAL
from gnomon.kernels.op import Result
from gnomon.kernels.triton_ops.linear import core

pytestmark = pytest.mark.usefixtures("poison")

DECAYS = ("none", "scalar", "vector")
KINDS = [(decay, delta) for decay in DECAYS for delta in (False, True)]
Core = Callable[..., Result]


@pytest.fixture(autouse=True)
def many_chunks(monkeypatch):
    """Chunks of 16, so that few tokens make many."""
    monkeypatch.setattr(core, "CHUNKS", dict.fromkeys(DECAYS, 16))


def inputs(
    decay: str, delta: bool, tokens: int, *, rows: int = 2, width: int = 16, values: int = 24
) -> dict[str, Tensor]:
    """In float64: gates from 1 to exp(-30), and some -inf; strengths up to 2 for keys of length one."""
    torch.manual_seed(0)
    size = (rows, tokens, 2)
    found = {"q": torch.randn(*size, width), "k": torch.randn(*size, width), "v": torch.randn(*size, values)}
    if decay != "none":
        found["g"] = -30 * torch.rand(*size, *([width] if decay == "vector" else [])) ** 4
        found["g"].view(-1)[7::31] = -torch.inf
    if delta:
        found |= {"k": base.unit(found["k"]), "beta": 2 * torch.rand(size)}
    found["state"] = torch.randn(rows, 2, width, values)
    return {name: x.double() for name, x in found.items()}


def results(function: Core, tensors: dict[str, Tensor], weights: list[Tensor]) -> dict[str, Tensor]:
    """Outputs, final state, and the gradients of a random sum of both."""
    leaves = {name: x.detach().clone().requires_grad_() for name, x in tensors.items()}
    state = {"s": leaves["state"]}
    others = {name: leaves[name] for name in leaves if name != "state"}
    o, after = function(**others, causal=True, scale=0.3, state=state)
    loss = sum((x * w.to(x.dtype).to(x.device)).sum() for x, w in zip((o, after["s"]), weights))
    gradients = torch.autograd.grad(loss, list(leaves.values()))
    return {"o": o, "final": after["s"], **{f"gradient of {name}": g for name, g in zip(leaves, gradients)}}


def agree(
    tensors: dict[str, Tensor], *, dtype: torch.dtype = EXACT, tolerance: float = TOLERANCE, ours: Core = core.chunk,
    truth: Core = base.recurrent,
) -> None:  # fmt: skip
    """Both are given the same numbers, those that dtype can hold; states have the accumulator's type."""
    kinds = {name: torch.promote_types(dtype, torch.float32) if name == "state" else dtype for name in tensors}
    narrow = {name: x.to(DEVICE, kinds[name]) for name, x in tensors.items()}
    exact = {name: x.cpu().double() for name, x in narrow.items()}
    weights = [torch.randn(exact["v"].shape).double(), torch.randn(exact["state"].shape).double()]
    found, wanted = results(ours, narrow, weights), results(truth, exact, weights)
    for name, x in wanted.items():
        difference = float(((found[name].cpu().double() - x).abs().max() / x.abs().max().clamp(min=1e-3)).detach())
        assert difference <= tolerance, f"{name}: off by {difference}"


@pytest.mark.parametrize("decay, delta", KINDS)
def test_equals_the_recurrence(decay, delta):
    """Two chunks a row, the last one short."""
    agree(inputs(decay, delta, 21))


@pytest.mark.parametrize("decay, delta", [("none", False), ("scalar", True), ("vector", True)])
def test_odd_widths(decay, delta):
    """More than a tile of keys and of values, and no powers of two."""
    agree(inputs(decay, delta, 17, rows=1, width=70, values=67))


@pytest.mark.parametrize("decay", ["scalar", "vector"])
def test_chunks_as_shipped(decay, monkeypatch):
    """Two or three of them."""
    monkeypatch.undo()
    agree(inputs(decay, True, 70, rows=1))


@pytest.mark.parametrize("delta", [False, True])
def test_constant_decay_of_all_rows(delta):
    """A gate (1,T,H) for two rows, which needs no gradient: lightning's."""
    tensors = inputs("none", delta, 21)
    g = -torch.tensor([0.0, 400.0], dtype=torch.float64).expand(1, 21, 2)
    weights = [torch.ones_like(tensors["v"]), torch.ones_like(tensors["state"])]
    moved = {name: x.to(DEVICE, EXACT) for name, x in tensors.items()}
    ours = results(lambda **how: core.chunk(**how, g=g.to(DEVICE, EXACT)), moved, weights)
    theirs = results(lambda **how: base.recurrent(**how, g=g), tensors, weights)
    for name, x in theirs.items():
        torch.testing.assert_close(ours[name].cpu().double(), x, rtol=TOLERANCE, atol=TOLERANCE)


def test_keys_that_are_all_the_same():
    """The solution of the delta rule stays small although powers of its matrix do not."""
    tensors = inputs("none", True, 64, rows=1)
    tensors["k"] = tensors["k"][:, :1].expand_as(tensors["k"]).contiguous()
    agree(tensors, dtype=torch.float32, tolerance=1e-4)


@pytest.mark.parametrize("decay", ["scalar", "vector"])
@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 2e-5), (torch.float16, 1e-2)], ids=["float32", "float16"])
def test_narrow_types(decay, dtype, tolerance):
    tensors = inputs(decay, True, 20, rows=1)
    agree(tensors, dtype=dtype, tolerance=tolerance if INTERPRETED else max(tolerance, 1e-3))


@pytest.mark.parametrize("decay, delta", KINDS)
def test_one_token(decay, delta):
    """The decoding step, and that it leaves the state it was given."""
    tensors = inputs(decay, delta, 1, width=19, values=37)
    tensors["k"] *= 3
    moved = {name: x.to(DEVICE, EXACT) for name, x in tensors.items()}
    state, old = moved.pop("state"), moved["q"].clone()
    before = state.clone()
    o, after = core.chunk(**moved, causal=True, scale=0.3, state={"s": state}, normalize=delta)
    exact = tensors.pop("state")
    theirs, theirs_after = base.recurrent(**tensors, causal=True, scale=0.3, state={"s": exact}, normalize=delta)
    torch.testing.assert_close(o.cpu().double(), theirs, rtol=TOLERANCE, atol=TOLERANCE)
    torch.testing.assert_close(after["s"].cpu().double(), theirs_after["s"], rtol=TOLERANCE, atol=TOLERANCE)
    assert torch.equal(state, before) and torch.equal(moved["q"], old)


def test_keys_of_any_length():
    """Normalised on the way in."""
    tensors = inputs("none", True, 17, rows=1, width=10)
    tensors["k"] *= 3
    truth = partial(base.recurrent, normalize=True)
    agree(tensors, ours=partial(core.chunk, normalize=True), truth=truth)


@pytest.mark.parametrize("operator", [gla, gated_deltanet])
def test_packed(operator):
    """Sequences of one chunk, of less and of more, with fewer heads of q and k: values, states and gradients."""
    tensors = inputs("vector" if operator is gla else "scalar", operator is gated_deltanet, 44, rows=1)
    del tensors["state"]
    if operator is gated_deltanet:
        tensors |= {name: tensors[name][:, :, :1] for name in "qk"}
    ends = torch.tensor([0, 16, 19, 44])
    found = []
    for impl, device, dtype in (("triton", DEVICE, EXACT), ("reference", "cpu", torch.float64)):
        leaves = {name: x.to(device, dtype).requires_grad_() for name, x in tensors.items()}
        o, state = operator(**leaves, mask=CAUSAL, cu_seqlens=ends.to(device), impl=impl)
        loss = (o * o).sum() + (state["s"] ** 2).sum()
        found.append([o, state["s"], *torch.autograd.grad(loss, list(leaves.values()))])
    for a, b in zip(*found):
        torch.testing.assert_close(a.cpu().double(), b, rtol=10 * TOLERANCE, atol=10 * TOLERANCE)


@pytest.mark.parametrize("operator", [lightning, hgrn2, based, hedgehog])
def test_packed_in_one_launch(operator, monkeypatch):
    """What is done around the core knows no other token: all sequences go to it at once, and come as if alone."""
    calls, plain = [], core.chunk
    monkeypatch.setattr(core, "chunk", lambda *a, **how: calls.append(how["cu_seqlens"]) or plain(*a, **how))
    tensors = list(inputs("none", False, 19, rows=1, width=4, values=5).values())[:3]
    more = {"decay": torch.tensor([0.0, 0.7])} if operator is lightning else {}
    ends, found = [0, 2, 19], []
    for impl, device, dtype in (("triton", DEVICE, EXACT), ("reference", "cpu", torch.float64)):
        leaves = [x.to(device, dtype).requires_grad_() for x in tensors]
        given = {name: x.to(device, dtype) for name, x in more.items()}
        if impl == "triton":
            packed = torch.tensor(ends, device=device)
            o, state = operator(*leaves, **given, mask=CAUSAL, cu_seqlens=packed, impl=impl)
            s = state["s"]
        else:
            alone = [
                operator(*(x[:, a:b] for x in leaves), **given, mask=CAUSAL, impl=impl) for a, b in ((0, 2), (2, 19))
            ]
            o, s = torch.cat([o for o, _ in alone], 1), torch.cat([state["s"] for _, state in alone])
        found.append([o, s, *torch.autograd.grad((o * o).sum() + (s * s).sum(), leaves)])
    for a, b in zip(*found):
        torch.testing.assert_close(a.cpu().double(), b, rtol=10 * TOLERANCE, atol=10 * TOLERANCE)
    assert [x.tolist() for x in calls] == [ends]
