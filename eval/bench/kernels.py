"""Speed of attention operators beside dense attention and other people's kernels, each checked before it is timed.

Shapes: B batch, T tokens, H heads, D width.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from gnomon.eval.bench.peers import Peer, peers
from gnomon.kernels.analysis.passes import passes
from gnomon.kernels.analysis.roofline import Device, estimate
from gnomon.kernels.example import Example, Sizes
from gnomon.kernels.mask import CAUSAL
from gnomon.kernels.members import Member
from gnomon.kernels.op import Shape, recording
from gnomon.vlm.generate import now

CHECKED = 256
"""Tokens at which outputs are compared with the float64 reference before anything is timed."""
TOLERANCE = {torch.float32: 2e-3, torch.bfloat16: 4e-2, torch.float16: 1e-2}
"""Largest error of an output, as a share of the largest output."""

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


@dataclass
class Timing:
    """One operator at one length. Seconds are medians; `error` as for TOLERANCE; `note` says why there is no time."""

    operator: str
    implementation: str
    length: int
    causal: bool
    forward: float | None = None
    both: float | None = None
    error: float | None = None
    dense_forward: float | None = None
    dense_both: float | None = None
    operations: float | None = None
    bytes: float | None = None
    floor: float | None = None
    limit: str = ""
    passes: int | None = None
    note: str = ""


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


def ceilings(device: torch.device, dtype: torch.dtype) -> Device:
    """What the device does at most, as measured: a large matrix product, a large copy, a large exponential."""
    side, many = (8192, 1 << 28) if device.type == "cuda" else (2048, 1 << 25)
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    x = torch.randn(many // 4, device=device)
    y = torch.empty_like(x)
    product, copy, exponential = (
        _seconds(f, device) for f in (lambda: a @ b, lambda: y.copy_(x), lambda: torch.exp(x, out=y))
    )
    return Device(2 * side**3 / product, 2 * 4 * x.numel() / copy, x.numel() / exponential)


def run(
    found: Sequence[Member],
    lengths: Sequence[int],
    setting: Setting,
    *,
    impl: str = "auto",
    device: Device | None = None,
) -> Iterator[Timing]:
    """Length by length, dense attention first, then each operator and its peers beside it."""
    slow: set[str] = set()
    for length in sorted(lengths):
        dense = {causal: _dense(length, causal, setting, slow) for causal in (True, False)}
        yield from dense.values()
        for member in found:
            causal = "CS" in member.op.patterns
            if not member.op.patterns & {"CS", "NS"}:
                continue
            for timing in _member(member, length, causal, setting, impl, slow):
                timing.dense_forward, timing.dense_both = dense[causal].forward, dense[causal].both
                if device is not None and timing.operations is None:
                    _account(timing, member, setting, device)
                yield timing


def _dense(length: int, causal: bool, setting: Setting, slow: set[str]) -> Timing:
    timing = Timing("dense attention (SDPA)", "sdpa", length, causal)
    q, k, v = (x.transpose(1, 2) for x in _qkv(length, setting))
    call = _Call(lambda: scaled_dot_product_attention(q, k, v, is_causal=causal), (q, k, v), setting)
    pairs = length**2 * (0.5 if causal else 1.0)
    timing.operations = 4 * setting.batch * setting.heads * setting.width * pairs
    return _timed(timing, call, f"dense {causal}", slow, setting)


def _member(member: Member, length: int, causal: bool, setting: Setting, impl: str, slow: set[str]) -> Iterator[Timing]:
    timing = Timing(f"{member.family}/{member.op.name}", impl, length, causal)
    try:
        timing.error = _error(member, causal, setting, impl)
        call = _our_call(member, length, causal, setting, impl)
        with recording() as choices:
            call.forward()
    except (ValueError, torch.OutOfMemoryError, RuntimeError) as error:
        timing.note = " ".join(str(error).split())[:160]
        yield timing
        return
    timing.implementation = choices[0].used if choices else impl
    if not timing.error <= TOLERANCE[setting.dtype]:
        timing.note = f"wrong by {timing.error:.1g}, not timed"
        yield timing
        return
    yield _timed(timing, call, member.op.name, slow, setting)
    for peer in peers(member.op.name):
        other = Timing(f"{member.family}/{member.op.name}", peer.name, length, causal)
        try:
            yield _timed(other, _their_call(peer, call, setting), f"{member.op.name} {peer.name}", slow, setting)
        except (ImportError, ValueError, RuntimeError) as error:
            other.note = " ".join(str(error).split())[:160]
            yield other


class _Call:
    """An output, and the gradients of all that is learned from one direction of it."""

    def __init__(self, output: Callable[[], Tensor], inputs: Sequence[Tensor], setting: Setting) -> None:
        self.output, self.inputs, self.device = output, list(inputs), setting.device
        self._grad: Tensor | None = None

    def forward(self) -> None:
        with torch.no_grad():
            self.output()

    def both(self) -> None:
        inputs = [x.requires_grad_(True) for x in self.inputs]
        o = self.output()
        if self._grad is None:
            self._grad = torch.randn_like(o)
        torch.autograd.grad(o, inputs, self._grad)
        for x in inputs:
            x.requires_grad_(False)


def _timed(timing: Timing, call: _Call, name: str, slow: set[str], setting: Setting) -> Timing:
    """Fills in the seconds, unless the operator was too slow at a shorter length."""
    if name in slow:
        timing.note = f"left out: over {setting.patience:g} s at a shorter length"
        return timing
    try:
        timing.forward = _seconds(call.forward, setting.device, patience=setting.patience)
        if setting.backward:
            timing.both = _seconds(call.both, setting.device, patience=setting.patience)
    except torch.OutOfMemoryError:
        timing.note = "out of memory"
        slow.add(name)
    except RuntimeError as error:
        timing.note = " ".join(str(error).split())[:160]
        slow.add(name)
    if max(timing.forward or 0, timing.both or 0) > setting.patience:
        slow.add(name)
    return timing


def _account(timing: Timing, member: Member, setting: Setting, device: Device) -> None:
    """What the algorithm must do, and how long the device would need for it."""
    length = timing.length
    shape = Shape(
        setting.batch, length, length, setting.heads, setting.heads, setting.width, setting.width, timing.causal,
        setting.dtype, setting.device,
    )  # fmt: skip
    found = estimate(member.op, shape, device)
    timing.operations, timing.bytes = found.operations, found.bytes
    if not member.op.masks:
        # what a static pattern leaves out depends on its mask, which the count of an operator does not know
        timing.floor, timing.limit = found.seconds, found.limit
    timing.passes = passes(member.op.cascade, running=True) if member.op.cascade else None


def _seconds(f: Callable[[], object], device: torch.device, *, patience: float = math.inf, least: float = 0.2) -> float:
    """Median of as many calls as fit into `least` seconds, at least 3; one call alone where that takes long."""
    first = _once(f, device)
    if first > patience:
        return first
    if first > least:
        return min(first, _once(f, device))
    count = max(3, min(50, math.ceil(least / max(first, 1e-6))))
    return median(_once(f, device) for _ in range(count))


def _once(f: Callable[[], object], device: torch.device) -> float:
    begun = now(device)
    f()
    return now(device) - begun


def _sizes(length: int, setting: Setting, dtype: torch.dtype) -> Sizes:
    return Sizes(
        torch.Generator().manual_seed(0),
        dtype,
        batch=setting.batch,
        queries=length,
        keys=length,
        heads=setting.heads,
        key_heads=setting.heads,
        width=setting.width,
        value_width=setting.width,
        grid=grid(length),
    )


def grid(length: int) -> tuple[int, int]:
    """The squarest grid of so many tokens."""
    side = math.isqrt(length)
    while length % side:
        side -= 1
    return side, length // side


def _qkv(length: int, setting: Setting) -> tuple[Tensor, ...]:
    return tuple(x.to(setting.device) for x in _sizes(length, setting, setting.dtype).qkv())


def _arguments(member: Member, sizes: Sizes) -> tuple[list[Tensor], dict[str, Any], dict[str, Any]]:
    """q, k, v; the tensors beside them that are learned; and the rest."""
    example: Example = member.op.example(sizes)
    own = sizes.qkv()
    qkv = [a if b is None else b for a, b in zip(own, (example.q, example.k, example.v))]
    # agent's tables are an option, and of the size of a test
    optional = member.op.name == "agent"
    tensors = {} if optional else {**example.per_query, **example.per_key, **example.parameters}
    # options of an example fit tests; at length the operator's own defaults are meant
    must = {
        name
        for name, parameter in inspect.signature(member.function).parameters.items()
        if parameter.default is inspect.Parameter.empty
    }
    options = {name: value for name, value in example.options.items() if name in must}
    if member.op.name in _OPTIONS:
        options |= _OPTIONS[member.op.name](sizes.keys, sizes.grid)
    return qkv, tensors, options


def _our_call(member: Member, length: int, causal: bool, setting: Setting, impl: str) -> _Call:
    qkv, tensors, options = _arguments(member, _sizes(length, setting, setting.dtype))
    qkv = [x.to(setting.device) for x in qkv]
    tensors = {name: x.to(setting.device) for name, x in tensors.items()}
    options = {name: x.to(setting.device) if isinstance(x, Tensor) else x for name, x in options.items()}
    mask = CAUSAL if causal else None

    def output() -> Tensor:
        return member.function(*qkv, **tensors, **options, mask=mask, impl=impl)[0]

    learned = [x for x in (*qkv, *tensors.values()) if x.is_floating_point()]
    call = _Call(output, learned, setting)
    call.qkv, call.tensors = qkv, tensors
    return call


def _their_call(peer: Peer, ours: _Call, setting: Setting) -> _Call:
    return _Call(lambda: peer.call(*ours.qkv, **ours.tensors), ours.inputs, setting)


def _error(member: Member, causal: bool, setting: Setting, impl: str) -> float:
    """The largest difference from the float64 reference on the same numbers, as a share of the largest output."""
    sizes = _sizes(CHECKED, setting, setting.dtype)
    qkv, tensors, options = _arguments(member, sizes)
    mask = CAUSAL if causal else None

    def put(x: Any, dtype: torch.dtype | None) -> Any:
        if not isinstance(x, Tensor):
            return x
        return x.to(setting.device, dtype if x.is_floating_point() else None)

    def output(dtype: torch.dtype | None, impl: str) -> Tensor:
        given = {name: put(x, dtype) for name, x in {**tensors, **options}.items()}
        return member.function(*(put(x, dtype) for x in qkv), **given, mask=mask, impl=impl)[0].double()

    with torch.no_grad():
        truth = output(torch.float64, "reference")
        return float((output(None, impl) - truth).abs().max() / truth.abs().max())
