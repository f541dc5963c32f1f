"""Other people's kernels for the same operators, as far as they are installed: flash-linear-attention and NATTEN."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Peer:
    name: str
    call: Callable[..., Tensor]


_NORMED = {"use_qk_l2norm_in_kernel": True}
# Per operator: package, module, function, how our tensors are called there, and what to ask for besides.
_KNOWN: dict[str, tuple[str, str, str, dict[str, str], dict[str, object]]] = {
    "lightning": ("fla", "fla.ops.simple_gla", "chunk_simple_gla", {"decay": "g_gamma"}, {"scale": 1.0}),
    "gla": ("fla", "fla.ops.gla", "chunk_gla", {"g": "g"}, {}),
    "deltanet": ("fla", "fla.ops.delta_rule", "chunk_delta_rule", {"beta": "beta"}, _NORMED),
    "gated_deltanet": (
        "fla", "fla.ops.gated_delta_rule", "chunk_gated_delta_rule", {"g": "g", "beta": "beta"}, _NORMED
    ),
    "kda": ("fla", "fla.ops.kda", "chunk_kda", {"g": "g", "beta": "beta"}, _NORMED),
}  # fmt: skip


def peers(operator: str) -> list[Peer]:
    """Those that are installed."""
    if operator not in _KNOWN:
        return []
    package, module, function, names, more = _KNOWN[operator]
    if importlib.util.find_spec(package) is None:
        return []

    def call(q: Tensor, k: Tensor, v: Tensor, **tensors: Tensor) -> Tensor:
        theirs = {names[name]: -x if name == "decay" else x for name, x in tensors.items()}
        return getattr(importlib.import_module(module), function)(q, k, v, **theirs, **more)[0]

    return [Peer(f"{package} {function}", call)]
