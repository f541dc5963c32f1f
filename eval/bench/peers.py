"""Other people's kernels for the same operators: FlexAttention, flash-linear-attention, NATTEN.

Who cannot run a case is named with the reason; nobody's plain form is timed in the place of a kernel.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import flex_attention
from torch.nn.functional import logsigmoid

from gnomon.eval.bench.kernel_calls import Call, is_pattern
from gnomon.kernels.masks.flex import block_mask
from gnomon.kernels.members import Member


@dataclass(frozen=True)
class Peer:
    """prepare: from a call of ours that has run, theirs on the same tensors. absent: why there is nothing to run;
    failing: what to say when it does not run. forward_only: why it has no backward.
    """

    name: str
    prepare: Callable[[Call], Callable[[], Tensor]]
    absent: str | None = None
    failing: str = "does not run here"
    forward_only: str = ""


_NORMED = {"use_qk_l2norm_in_kernel": True}
# Of flash-linear-attention, per operator: module, function, how our tensors are called there, what to ask for besides.
_LINEAR: dict[str, tuple[str, str, dict[str, str], dict[str, object]]] = {
    "plain": ("fla.ops.linear_attn", "chunk_linear_attn", {}, {"normalize": False}),
    "lightning": ("fla.ops.simple_gla", "chunk_simple_gla", {"decay": "g_gamma"}, {"scale": 1.0}),
    "gla": ("fla.ops.gla", "chunk_gla", {"g": "g"}, {}),
    "deltanet": ("fla.ops.delta_rule", "chunk_delta_rule", {"beta": "beta"}, _NORMED),
    "gated_deltanet": ("fla.ops.gated_delta_rule", "chunk_gated_delta_rule", {"g": "g", "beta": "beta"}, _NORMED),
    "kda": ("fla.ops.kda", "chunk_kda", {"g": "g", "beta": "beta"}, _NORMED),
    "based": ("fla.ops.based", "fused_chunk_based", {}, {}),
    "hgrn2": ("fla.ops.gla", "chunk_gla", {}, {}),
    "lightnet": ("fla.ops.gla", "chunk_gla", {}, {}),
    "hedgehog": ("fla.ops.linear_attn", "chunk_linear_attn", {}, {"normalize": True}),
}


def _hgrn2(q: Tensor, k: Tensor) -> dict[str, Tensor]:
    return {"q": q, "k": torch.sigmoid(-k), "g": logsigmoid(k.float())}


def _lightnet(q: Tensor, k: Tensor) -> dict[str, Tensor]:
    z = k.float().logcumsumexp(1)
    # nothing is there yet that the first gate could let go
    return {"q": q, "k": (k - z).exp().to(k.dtype), "g": torch.cat([z[:, :1], z[:, :-1]], 1) - z}


def _hedgehog(q: Tensor, k: Tensor) -> dict[str, Tensor]:
    q, k = (torch.cat([x.softmax(-1), (-x).softmax(-1)], -1) for x in (q, k))
    return {"q": q, "k": k}


# What their layers of the same name make of q and k before they call the function: it is timed with it.
_BEFORE: dict[str, Callable[[Tensor, Tensor], dict[str, Tensor]]] = {
    "hgrn2": _hgrn2, "lightnet": _lightnet, "hedgehog": _hedgehog
}  # fmt: skip


def peers(member: Member, causal: bool, device: torch.device) -> list[Peer]:
    """All that know the operator."""
    name, found = member.op.name, []
    if name == "exact" or is_pattern(member):
        compiled, only = "not compiled here, and eager is not timed", "no backward on the CPU"
        found.append(Peer("FlexAttention", _flex, None, compiled, only if device.type == "cpu" else ""))
    if name in _LINEAR:
        found.append(Peer(f"fla {_LINEAR[name][1]}", lambda call: _linear(call, name), _absent("fla", device)))
    if name == "neighborhood":
        # it has causal axes, which is another thing than causal order along the tokens
        absent = "no such mask: causal along the tokens" if causal else _absent("natten", device)
        found.append(Peer("NATTEN", _natten, absent))
    return found


def _absent(package: str, device: torch.device) -> str | None:
    if importlib.util.find_spec(package) is None:
        return f"{package} is not installed"
    return None if device.type == "cuda" else f"{package}: its kernels are for GPUs"


def _flex(call: Call) -> Callable[[], Tensor]:
    """Compiled; fullgraph, so that what cannot be compiled is an error and not run eagerly."""
    assert call.chosen is not None
    blocks = block_mask(call.chosen.mask, heads=call.chosen.shape.heads)
    # shapes compiled before count against a limit beyond which torch stops compiling
    torch.compiler.reset()
    compiled = torch.compile(flex_attention, dynamic=False, fullgraph=True)

    def output() -> Tensor:
        q, k, v = (x.transpose(1, 2) for x in call.qkv)
        return compiled(q, k, v, block_mask=blocks).transpose(1, 2)

    return output


def _linear(call: Call, name: str) -> Callable[[], Tensor]:
    module, function, names, more = _LINEAR[name]
    run = getattr(importlib.import_module(module), function)

    def output() -> Tensor:
        q, k, v = call.qkv
        theirs = {names[own]: -x if own == "decay" else x for own, x in call.tensors.items()}
        made = _BEFORE[name](q, k) if name in _BEFORE else {"q": q, "k": k}
        found = run(**made, v=v, **theirs, **more)
        return found if isinstance(found, Tensor) else found[0]

    return output


def _natten(call: Call) -> Callable[[], Tensor]:
    """Their tokens are on the grid: (B,h,w,H,D)."""
    grid, window = call.options["grid"], call.options["window"]
    run = getattr(importlib.import_module("natten.functional"), f"na{len(grid)}d")

    def output() -> Tensor:
        q, k, v = (x.unflatten(1, grid) for x in call.qkv)
        return run(q, k, v, kernel_size=tuple(window)).flatten(1, len(grid))

    return output
