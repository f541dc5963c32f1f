"""What an operator must cost on a device: the slowest of its operations, its bytes and its exponentials."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from gnomon.kernels.analysis.passes import passes
from gnomon.kernels.mask import Bound, Causal, Everything
from gnomon.kernels.masks.blocks import visible_pairs
from gnomon.kernels.members import Member
from gnomon.kernels.op import Op, Shape


@dataclass(frozen=True)
class Device:
    """Peaks per second: operations, bytes and exponentials (None: never the limit)."""

    operations: float
    bytes: float
    exponentials: float | None = None

    def __post_init__(self) -> None:
        if min(self.operations, self.bytes, self.exponentials or 1.0) <= 0:
            raise ValueError(f"roofline: {self} has a peak of zero or less; give what was measured, per second")


@dataclass(frozen=True)
class Estimate:
    """The floor of one forward call. `intensity`: operations per byte; `limit`: what takes the `seconds`."""

    operations: float
    bytes: float
    exponentials: float
    intensity: float
    seconds: float
    limit: str


def estimate(op: Op, shape: Shape, device: Device, *, mask: Bound | None = None) -> Estimate:
    """mask: of a call, where the record alone does not know which pairs it lets through."""
    cost = op.cost(shape)
    if mask is not None and op.masks and not isinstance(mask.expr, (Everything, Causal)):
        # a record takes whatever hides something for half of all pairs
        cost = op.cost(replace(shape, causal=False))
        share = visible_pairs(mask, shape.heads) / (mask.q.length * mask.k.length)
        cost = replace(cost, operations=share * cost.operations, exponentials=share * cost.exponentials)
    times = {"operations": cost.operations / device.operations, "bytes": cost.bytes / device.bytes}
    if device.exponentials is not None:
        times["exponentials"] = cost.exponentials / device.exponentials
    limit = max(times, key=lambda name: times[name])
    intensity = cost.operations / cost.bytes
    return Estimate(cost.operations, cost.bytes, cost.exponentials, intensity, times[limit], limit)


def table(members: Sequence[Member], shape: Shape, device: Device) -> str:
    """Markdown, the fastest floor first. Passes over the keys: as a kernel that keeps running values needs them."""
    lines = [
        "| operator | passes | GFLOP | MB | Gexp | FLOP/B | floor (ms) | limit |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    found = [(estimate(member.op, shape, device), member) for member in members]
    for e, member in sorted(found, key=lambda pair: pair[0].seconds):
        count = passes(member.op.cascade, running=True) if member.op.cascade else "-"
        lines.append(
            f"| {member.family}/{member.op.name} | {count} | {e.operations / 1e9:.3g} | {e.bytes / 1e6:.3g} "
            f"| {e.exponentials / 1e9:.3g} | {e.intensity:.3g} | {e.seconds * 1e3:.3g} | {e.limit} |"
        )
    return "\n".join(lines)
