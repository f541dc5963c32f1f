"""Speed of attention operators beside dense attention and other people's kernels, each checked before it is timed."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from gnomon.eval.bench.density import density
from gnomon.eval.bench.kernel_calls import NARROW, Call, Setting, Timed, checks, sizes
from gnomon.eval.bench.peers import Peer, peers
from gnomon.kernels.analysis.passes import passes
from gnomon.kernels.analysis.roofline import Device, estimate
from gnomon.kernels.mask import Bound
from gnomon.kernels.members import Member
from gnomon.kernels.op import Op, Shape
from gnomon.kernels.softmax.exact import OP as DENSE
from gnomon.vlm.generate import now

AnyTimed = TypeVar("AnyTimed", bound=Timed)

CHECKED = 256
"""Tokens at which outputs and gradients are compared with the float64 reference before anything is timed."""
TOLERANCE = {torch.float32: 2e-3, torch.bfloat16: 4e-2, torch.float16: 1e-2}
"""Largest error of an output, as a share of the largest output; the same of the gradients of q, k and v, each."""
FOREIGN = (ImportError, AttributeError, TypeError, ValueError, AssertionError, RuntimeError)
"""How another version of a package than we know may fail."""


@dataclass
class Timing:
    """One operator at one length. Seconds are the fastest call's; `error` as for TOLERANCE; `note` says what is missing
    and why.

    step               of the last token alone, with what is remembered of the others
    density            of sparse operators: the pairs they see, as a share of dense attention's
    operations, bytes  of a forward call, by the operator's record; floor: seconds that the device needs for them
    """

    operator: str
    implementation: str
    length: int
    causal: bool
    forward: float | None = None
    both: float | None = None
    step: float | None = None
    error: float | None = None
    dense_forward: float | None = None
    dense_both: float | None = None
    dense_step: float | None = None
    operations: float | None = None
    bytes: float | None = None
    floor: float | None = None
    limit: str = ""
    passes: int | None = None
    density: float | None = None
    note: str = ""

    def account(self, op: Op, shape: Shape, mask: Bound | None, device: Device | None, times: int = 1) -> None:
        """What the algorithm must do so many times, and how long the device would need for it."""
        if device is None:
            return
        found = estimate(op, shape, device, mask=mask)
        self.operations, self.bytes, self.floor, self.limit = (
            times * found.operations, times * found.bytes, times * found.seconds, found.limit
        )  # fmt: skip
        self.passes = passes(op.cascade, running=True) if op.cascade else None


def ceilings(device: torch.device, dtype: torch.dtype) -> Device:
    """What the device does at most, as measured: a large matrix product, a large copy, a large exponential."""
    sides, many = ((8192,), 1 << 28) if device.type == "cuda" else ((512, 1024, 2048), 1 << 25)
    for side in sides:
        a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
        product = _seconds(partial(torch.mm, a, b), device)
        # in some types a CPU takes very long
        if product > 0.05:
            break
    x = torch.randn(many // 4, device=device)
    y = torch.empty_like(x)
    copy, exponential = (_seconds(f, device) for f in (lambda: y.copy_(x), lambda: torch.exp(x, out=y)))
    return Device(2 * side**3 / product, 2 * 4 * x.numel() / copy, x.numel() / exponential)


def run(
    found: Sequence[Member],
    lengths: Sequence[int],
    setting: Setting,
    *,
    impl: str = "auto",
    device: Device | None = None,
    others: bool = True,
) -> Iterator[Timing]:
    """Length by length, dense attention first, then each operator and, with `others`, its peers beside it."""
    bench = _Bench(setting, impl, device, others)
    for length in sorted(set(lengths)):
        why = no_room(length, setting)
        if why is not None:
            yield Timing("all operators", "", length, False, note=why)
            continue
        dense = {causal: bench.dense(length, causal) for causal in (True, False)}
        yield from dense.values()
        for member in found:
            # what is laid out on a grid is for vision encoders, where everything is visible
            causal = "CS" in member.op.patterns and not member.op.grid
            if not member.op.patterns & {"CS", "NS"}:
                continue
            for timing in bench.member(member, length, causal):
                beside = dense[causal]
                timing.dense_forward, timing.dense_both, timing.dense_step = beside.forward, beside.both, beside.step
                yield timing


def no_room(length: int, setting: Setting) -> str | None:
    """Why a length cannot be tried: its inputs and gradients alone are larger than the memory that is free."""
    size = torch.finfo(setting.dtype).bits // 8
    # q, k, v and the output, their gradients, and one of them as it is drawn
    needed = length * setting.batch * setting.heads * setting.width * (4 * size * (1 + setting.backward) + 8)
    free = _free(setting.device)
    if free is None or needed <= free:
        return None
    needs, has = (f"{x / 2**30:,.1f} GiB" for x in (needed, free))
    return f"needs {needs} at least and {has} are free; use shorter lengths, fewer --heads or a smaller --batch"


class _Bench:
    """One run: what was too slow, what was checked, and whose absence was told."""

    def __init__(self, setting: Setting, impl: str, device: Device | None, others: bool) -> None:
        self.setting, self.impl, self.device, self.others = setting, impl, device, others
        self.slow: dict[str, str] = {}
        self.told: set[str] = set()
        self.errors: dict[str, float] = {}
        self.truths: dict[int, list[Tensor | None]] = {}
        self.backless: dict[str, str] = {}
        self.unseen: set[str] = set()

    def dense(self, length: int, causal: bool) -> Timing:
        timing = Timing("dense attention (SDPA)", "sdpa", length, causal)

        q, k, v = (x.to(self.setting.device).transpose(1, 2) for x in sizes(length, self.setting).qkv())

        def make() -> Timed:
            return _begun(Timed(lambda: scaled_dot_product_attention(q, k, v, is_causal=causal), (q, k, v)))

        if self._time(timing, make, f"dense {causal}") is not None:
            s = self.setting
            if causal:
                last = Timed(lambda: scaled_dot_product_attention(q[:, :, -1:], k, v), ())
                self._step(timing, lambda: last)
            shape = Shape(s.batch, length, length, s.heads, s.heads, s.width, s.width, causal, s.dtype, s.device)
            timing.account(DENSE, shape, None, self.device)
        return timing

    def member(self, member: Member, length: int, causal: bool) -> Iterator[Timing]:
        name = f"{member.family}/{member.op.name}"
        timing = Timing(name, self.impl, length, causal)
        # only kept for the peers, which come next
        self.truths.clear()

        def make() -> Call:
            call = _begun(Call(member, length, causal, self.setting, self.impl))
            assert call.chosen is not None
            timing.error = self._error(member, causal, None, call.chosen.used)
            call.forward_only = self.backless.get(_key(member, None, call.chosen.used), "")
            return call

        ours = self._time(timing, make, name)
        if isinstance(ours, Call) and ours.chosen is not None:
            timing.implementation = ours.chosen.used
            op = replace(member.op, cost=ours.chosen.cost)
            timing.account(op, ours.chosen.shape, ours.chosen.mask, self.device, ours.times)
            timing.density = density(ours)
            timing.note = "; ".join(filter(None, [*self._told(member, timing), timing.note]))
            self._step(timing, ours.step)
        yield timing
        if not isinstance(ours, Call) or ours.chosen is None:
            return
        for peer in peers(member, causal, self.setting.device) if self.others else ():
            yield from self._peer(peer, member, ours, timing)

    def _step(self, timing: Timing, step: Callable[[], Timed | None]) -> None:
        try:
            if (last := step()) is not None:
                timing.step = _seconds(_begun(last).forward, self.setting.device)
        except (ValueError, RuntimeError) as error:
            timing.note = "; ".join(filter(None, [timing.note, f"no single token: {_line(error)}"]))

    def _told(self, member: Member, timing: Timing) -> Iterator[str]:
        """What there is to say of a row that has been timed."""
        if narrow := NARROW.get(member.op.name):
            yield f"queries and keys {narrow} wide"
        if timing.density == 1:
            yield "dense at this length"
        elif timing.density is not None and _key(member, None, timing.implementation) in self.unseen:
            yield f"checked where it is dense, at {CHECKED} tokens"

    def _peer(self, peer: Peer, member: Member, ours: Call, beside: Timing) -> Iterator[Timing]:
        timing = Timing(beside.operator, peer.name, beside.length, beside.causal, note=peer.absent or "")
        name = f"{beside.operator} {peer.name}"
        if peer.absent:
            if name not in self.told:
                self.told.add(name)
                yield timing
            return

        def make() -> Timed:
            timing.error = self._error(member, beside.causal, peer, self.impl)
            why = peer.forward_only or self.backless.get(_key(member, peer, self.impl), "")
            return _begun(Timed(peer.prepare(ours), ours.learned, why))

        if self._time(timing, make, name) is not None:
            timing.operations, timing.bytes, timing.floor = beside.operations, beside.bytes, beside.floor
            timing.limit, timing.density = beside.limit, beside.density
        yield timing

    def _error(self, member: Member, causal: bool, peer: Peer | None, impl: str) -> float:
        """The largest difference from the float64 reference on the same numbers, as a share of the largest number: of
        the output and, where the backward is timed, of the gradients of q, k and v.
        """
        key = _key(member, peer, impl)
        if key not in self.errors:
            self.errors[key] = self._difference(member, causal, peer, impl)
        return self.errors[key]

    def _difference(self, member: Member, causal: bool, peer: Peer | None, impl: str) -> float:
        key, errors, shares = _key(member, peer, impl), [], []
        expected = FOREIGN if peer else (ValueError, RuntimeError)
        for number, other in enumerate(checks(member, CHECKED, self.setting.dtype)):
            try:
                truth = self._truth(member, causal, other, number)
                call = Call(member, CHECKED, causal, self.setting, impl, other=other)
                found: list[Tensor | None] = [call.forward()]
            except ValueError as error:
                raise ValueError(f"its check at {CHECKED} tokens: {error}") from error
            timed: Timed = call
            if peer is None:
                # an implementation may have none; that is said where it is timed
                with suppress(ValueError):
                    errors += [_share(last.forward(), truth[0][:, -1:])] if (last := call.step()) else []
            else:
                try:
                    timed = Timed(peer.prepare(call), call.learned, peer.forward_only)
                    found = [timed.forward()]
                except FOREIGN as error:
                    raise RuntimeError(f"{peer.failing}: {_line(error)}") from error
            if self.setting.backward and not timed.forward_only:
                try:
                    found += timed.checked(3)[1:]
                except expected as error:
                    self.backless[key] = f"no backward: {_line(error)}"
            errors += [_share(x, y) for x, y in zip(found, truth)]
            shares.append(density(call))
        if all(share == 1 for share in shares):
            self.unseen.add(key)
        # torch's maximum: NaN is the largest of all
        return float(torch.stack(errors).max())

    def _truth(self, member: Member, causal: bool, other: Mapping[str, Any], number: int) -> list[Tensor | None]:
        """The reference's output and gradients in float64."""
        if number not in self.truths:
            call = Call(member, CHECKED, causal, self.setting, "reference", wide=True, other=other)
            self.truths[number] = call.checked(3) if self.setting.backward else [call.forward()]
        return self.truths[number]

    def _time(self, timing: Timing, make: Callable[[], Timed], name: str) -> Timed | None:
        """Fills in seconds and note of what `make` has begun and checked; None if it could not even be called."""
        setting = self.setting
        if name in self.slow:
            timing.note = f"left out: {self.slow[name]} at a shorter length"
            return None
        try:
            call = make()
            if timing.error is not None and not timing.error <= TOLERANCE[setting.dtype]:
                timing.note = f"wrong by {timing.error:.1g}, not timed"
                return None
            timing.forward = _seconds(call.forward, setting.device, patience=setting.patience)
        except (ValueError, RuntimeError) as error:
            self._failed(timing, error, name)
            return None
        timing.note = call.forward_only if setting.backward else ""
        try:
            if setting.backward and not call.forward_only:
                timing.both = _seconds(call.both, setting.device, patience=setting.patience)
        except (ValueError, RuntimeError) as error:
            self._failed(timing, error, name)
        if max(timing.forward, timing.both or 0) > setting.patience:
            self.slow[name] = f"over {setting.patience:g} s"
        return call

    def _failed(self, timing: Timing, error: Exception, name: str) -> None:
        timing.note = _line(error)
        # a length can be wrong for a pattern; what a machine cannot do at one length it cannot do at a longer one
        if isinstance(error, RuntimeError):
            self.slow[name] = "failed"
        if isinstance(error, torch.OutOfMemoryError) or "allocate memory" in str(error):
            timing.note = self.slow[name] = "out of memory"
            if self.setting.device.type == "cuda":
                torch.cuda.empty_cache()


def _begun(call: AnyTimed) -> AnyTimed:
    """The first call chooses, compiles and makes what is kept with a mask."""
    call.forward()
    return call


def _share(found: Tensor | None, truth: Tensor | None) -> Tensor:
    """The largest difference as a share of the largest true number; no gradient is one of zeros."""
    if found is None or truth is None:
        some = found if truth is None else truth
        return torch.zeros(()) if some is None else _share(torch.zeros_like(some), some)
    return ((found.double() - truth).abs().max() / truth.abs().max().clamp_min(1e-30)).cpu()


def _key(member: Member, peer: Peer | None, impl: str) -> str:
    """What one check is for."""
    return f"{member.family}/{member.op.name} {peer.name if peer else impl}"


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:160]


def _free(device: torch.device) -> int | None:
    """Bytes; None where nobody says."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    about = Path("/proc/meminfo")
    lines = about.read_text().splitlines() if about.exists() else []
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")), None)


def _seconds(f: Callable[[], object], device: torch.device, *, patience: float = math.inf, least: float = 0.5) -> float:
    """The fastest call, for whatever else the machine does only adds to it: of as many as fit into `least` seconds, at
    least 5; of longer ones of 3, or the one that is beyond patience.
    """
    first = _once(f, device)
    if first > patience:
        return first
    count = 2 if first > least else max(4, min(50, math.ceil(least / max(first, 1e-6))))
    return min(first, *(_once(f, device) for _ in range(count)))


def _once(f: Callable[[], object], device: torch.device) -> float:
    begun = now(device)
    f()
    return now(device) - begun
