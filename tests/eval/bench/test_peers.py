"""Other people's kernels are called as documented: stand-ins with their signatures, written pair by pair or token by
token, come out as our operators do."""

from __future__ import annotations

import importlib.machinery
import sys
import types
from dataclasses import replace
from itertools import product

import pytest
import torch
from torch import Tensor

from gnomon.eval.bench.kernel_calls import Call, Setting
from gnomon.eval.bench.kernels import run
from gnomon.eval.bench.peers import peers
from gnomon.eval.names import operators

SETTING = Setting(1, 2, 8, torch.float32, torch.device("cpu"), True, 60.0)
GPU = torch.device("cuda")


@pytest.fixture
def installed(monkeypatch):
    """Puts modules where an import finds them."""

    def put(module: str, **functions) -> None:
        parts = module.split(".")
        for end in range(1, len(parts) + 1):
            name = ".".join(parts[:end])
            made = types.ModuleType(name)
            made.__spec__ = importlib.machinery.ModuleSpec(name, None)
            monkeypatch.setitem(sys.modules, name, made)
        for name, function in functions.items():
            setattr(made, name, function)

    return put


def called(name: str, length: int, causal: bool) -> tuple[Call, Tensor]:
    call = Call(operators([name])[0], length, causal, SETTING, "auto")
    return call, call.forward()


def na2d(query: Tensor, key: Tensor, value: Tensor, kernel_size: tuple[int, int], stride=1, dilation=1) -> Tensor:
    """(B,X,Y,H,D): each cell over the window around it, which is moved at the borders."""
    rows, columns = query.shape[1:3]
    o = torch.empty_like(value)
    for y, x in product(range(rows), range(columns)):
        top, left = (
            min(max(at - size // 2, 0), extent - size) for at, size, extent in zip((y, x), kernel_size, (rows, columns))
        )
        near = (slice(None), slice(top, top + kernel_size[0]), slice(left, left + kernel_size[1]))
        keys, values = key[near].flatten(1, 2), value[near].flatten(1, 2)
        scores = torch.einsum("bhd,bkhd->bhk", query[:, y, x], keys) * query.shape[-1] ** -0.5
        o[:, y, x] = torch.einsum("bhk,bkhd->bhd", scores.softmax(-1), values)
    return o


def test_natten(installed):
    (member,) = operators(["neighborhood"])

    def natten(causal: bool, device: torch.device):
        return {peer.name: peer for peer in peers(member, causal, device)}["NATTEN"]

    assert natten(False, GPU).absent == "natten is not installed"
    installed("natten.functional", na2d=na2d)
    assert natten(False, SETTING.device).absent == "natten: its kernels are for GPUs"
    assert natten(True, GPU).absent == "no such mask: causal along the tokens"
    # 15 x 20, windows of 13 x 13
    call, ours = called("neighborhood", 300, False)
    assert natten(False, GPU).absent is None
    torch.testing.assert_close(natten(False, GPU).prepare(call)(), ours, atol=1e-5, rtol=1e-5)


def recurrence(q: Tensor, k: Tensor, v: Tensor, decays: Tensor, scale: float | None) -> tuple[Tensor, None]:
    """S_t = diag(exp decay) S_{t-1} + k_t v_t, o_t = scale q_t S_t; decays (T,H or H,D)."""
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    s, o = torch.zeros(q.shape[2], q.shape[3], v.shape[3]), torch.empty_like(v)
    for t in range(q.shape[1]):
        s = decays[t].exp().reshape(q.shape[2], -1, 1) * s + k[0, t, :, :, None] * v[0, t, :, None]
        o[0, t] = torch.einsum("hd,hdv->hv", q[0, t] * scale, s)
    return o, None


def chunk_gla(q, k, v, g, scale=None):
    return recurrence(q, k, v, g[0], scale)


def chunk_simple_gla(q, k, v, g=None, g_gamma=None, scale=None):
    return recurrence(q, k, v, g_gamma.expand(q.shape[1], -1), scale)


def chunk_linear_attn(q, k, v, scale=None, initial_state=None, output_final_state=False, normalize=True):
    open_ = torch.zeros(q.shape[1:3])
    o, _ = recurrence(q, k, v, open_, scale)
    return o / recurrence(q, k, torch.ones_like(v), open_, scale)[0] if normalize else o, None


def fused_chunk_based(q, k, v, scale=None, use_norm=True, head_first=False):
    """No tuple; exp's series up to the square, over the keys up to each token."""
    assert q.shape[-1] <= 16 and use_norm and not head_first
    o = torch.empty_like(v)
    for t in range(q.shape[1]):
        near = torch.einsum("bhd,bkhd->bhk", q[:, t], k[:, : t + 1]) * q.shape[-1] ** -0.5
        weights = 1 + near + near**2 / 2
        weighted = torch.einsum("bhk,bkhv->bhv", weights, v[:, : t + 1])
        o[:, t] = weighted / (weights.sum(-1, keepdim=True) + 1e-6)
    return o


THEIRS = {
    "gla": ("fla.ops.gla", chunk_gla),
    "lightning": ("fla.ops.simple_gla", chunk_simple_gla),
    "plain": ("fla.ops.linear_attn", chunk_linear_attn),
    "based": ("fla.ops.based", fused_chunk_based),
    "hgrn2": ("fla.ops.gla", chunk_gla),
    "lightnet": ("fla.ops.gla", chunk_gla),
    "hedgehog": ("fla.ops.linear_attn", chunk_linear_attn),
}


@pytest.mark.parametrize("name", THEIRS)
def test_flash_linear_attention(name, installed):
    (member,) = operators([name])
    assert [peer.absent for peer in peers(member, True, GPU)] == ["fla is not installed"]
    module, function = THEIRS[name]
    installed(module, **{function.__name__: function})
    (peer,) = peers(member, True, GPU)
    assert peer.name == f"fla {function.__name__}" and peer.absent is None
    call, ours = called(name, 40, True)
    torch.testing.assert_close(peer.prepare(call)(), ours, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", ["hgrn2", "lightnet", "hedgehog"])
def test_what_is_made_before_their_function_keeps_the_type(name, dtype, installed):
    """Of queries and keys, as their kernels want it; the gates are float32."""

    def given(q, k, v, g=None, **more):
        assert (q.dtype, k.dtype, v.dtype) == (dtype,) * 3 and (g is None or g.dtype == torch.float32)
        return v, None

    module, function = THEIRS[name]
    installed(module, **{function.__name__: given})
    (member,) = operators([name])
    call = Call(member, 40, True, replace(SETTING, dtype=dtype), "auto")
    assert peers(member, True, GPU)[0].prepare(call)() is call.qkv[2]


FLEX = [m.op.name for m in operators([]) if any(p.name == "FlexAttention" for p in peers(m, True, GPU))]
"""Each is held below to being attention under its mask and nothing else, so that a new pattern needs no line here."""


def test_flex_attention_is_for_masks_alone():
    assert set(FLEX) >= {"exact", "axial", "blockrank", "clear", "neighborhood", "power", "radial", "s2"}
    families = {m.op.name: m.family for m in operators([])}
    assert {name for name in FLEX if families[name] != "sparse"} == {"exact"}
    # these choose by the data, which no mask says
    assert not {"infllm_v2", "sla"} & set(FLEX)


@pytest.mark.parametrize("name", FLEX)
def test_flex_attention_gets_our_masks(name, monkeypatch):
    """Its plain form stands in for what the compiler makes of it."""
    (member,) = operators([name])
    monkeypatch.setattr(torch, "compile", lambda function, **how: function)
    call, ours = called(name, 256, "CS" in member.op.patterns and not member.op.grid)
    flex = next(peer for peer in peers(member, True, SETTING.device) if peer.name == "FlexAttention")
    with torch.no_grad():
        torch.testing.assert_close(flex.prepare(call)(), ours, atol=1e-5, rtol=1e-5)
    assert flex.forward_only == "no backward on the CPU"


def test_what_cannot_be_compiled_is_not_timed_eagerly(monkeypatch):
    def compile(function, **how):
        raise RuntimeError("no C++ compiler")

    monkeypatch.setattr(torch, "compile", compile)
    found = [t for t in run(operators(["axial"]), [64], SETTING) if t.implementation == "FlexAttention"]
    assert [t.note for t in found] == ["not compiled here, and eager is not timed: no C++ compiler"]
    assert found[0].forward is None


@pytest.mark.slow
def test_flex_attention_compiled():
    """Where there is a C++ compiler; else it says why not."""
    (flex,) = [t for t in run(operators(["axial"]), [64], SETTING) if t.implementation == "FlexAttention"]
    if flex.forward is None:
        assert flex.note.startswith("not compiled here, and eager is not timed: ")
    else:
        assert flex.error < 1e-4 and flex.note == "no backward on the CPU"
