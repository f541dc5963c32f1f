"""The atoms of the mask language that know no grid: positions, fields, groups, tables."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from gnomon.kernels.mask import And, Expr, View


@dataclass(frozen=True)
class Recent(Expr):
    """0 <= p_q - p_k < width."""

    width: int

    def allow(self, at: View) -> Tensor:
        gap = at.q("p") - at.k("p")
        return (gap >= 0) & (gap < self.width)


@dataclass(frozen=True)
class Prefix(Expr):
    """Keys before position n are seen by all; n may be the name of a field of the queries (a length per sample)."""

    n: int | str

    def allow(self, at: View) -> Tensor:
        limit = at.q(self.n) if isinstance(self.n, str) else self.n
        return (at.k("p") < limit) & (at.q("p") == at.q("p"))


@dataclass(frozen=True)
class Band(Expr):
    """|c_q - c_k| <= radius, clipped at the borders (a grid window is shifted there instead)."""

    axis: str
    radius: int

    def allow(self, at: View) -> Tensor:
        return (at.q(self.axis) - at.k(self.axis)).abs() <= self.radius


@dataclass(frozen=True)
class Disc(Expr):
    """dy^2 + dx^2 < limit, strictly."""

    limit: int

    def allow(self, at: View) -> Tensor:
        dy, dx = at.q("y") - at.k("y"), at.q("x") - at.k("x")
        return dy * dy + dx * dx < self.limit


@dataclass(frozen=True)
class Group(Expr):
    """Equal values of (field + offset) // size, modulo `modulus` when it is given: always an equivalence."""

    field: str
    size: int = 1
    offset: int = 0
    modulus: int | None = None

    def key(self, values: Tensor) -> Tensor:
        whole = torch.div(values + self.offset, self.size, rounding_mode="floor")
        return whole if self.modulus is None else whole % self.modulus

    def allow(self, at: View) -> Tensor:
        return self.key(at.q(self.field)) == self.key(at.k(self.field))


@dataclass(frozen=True)
class Is(Expr):
    """The field of one side has one of the values."""

    side: str
    field: str
    values: tuple[int, ...]

    def allow(self, at: View) -> Tensor:
        mine, other = (at.q, at.k) if self.side == "q" else (at.k, at.q)
        found = mine(self.field) == self.values[0]
        for value in self.values[1:]:
            found = found | (mine(self.field) == value)
        # keeps the shape of a pair although the other side does not matter
        return found & (other("p") == other("p"))


@dataclass(frozen=True)
class PowerOfTwo(Expr):
    """The distance in blocks is 0 or a power of two, backwards."""

    block: int

    def allow(self, at: View) -> Tensor:
        gap = torch.div(at.q("p"), self.block, rounding_mode="floor") - torch.div(
            at.k("p"), self.block, rounding_mode="floor"
        )
        return (gap >= 0) & ((gap & (gap - 1)) == 0)


@dataclass(frozen=True, eq=False)
class Table(Expr):
    """values[(head,) field_q // block_q, field_k // block_k]; what falls outside of the table is hidden."""

    values: Tensor
    field: str
    block_q: int
    block_k: int

    def allow(self, at: View) -> Tensor:
        rows, columns = self.values.shape[-2:]
        q = torch.div(at.q(self.field), self.block_q, rounding_mode="floor")
        k = torch.div(at.k(self.field), self.block_k, rounding_mode="floor")
        inside = (q >= 0) & (q < rows) & (k >= 0) & (k < columns)
        values = self.values.to(q.device)
        # modulo: one head stands for all
        head = (at.head % len(values),) if values.ndim == 3 else ()
        return inside & at.look(values, *head, q.clamp(0, rows - 1), k.clamp(0, columns - 1))

    @property
    def made_for(self) -> tuple[int, int]:
        return 1, len(self.values) if self.values.ndim == 3 else 1


def recent(width: int) -> Expr:
    """A causal sliding window: the token itself and the width - 1 before it."""
    return Recent(_positive("width", width))


def prefix(n: int | str) -> Expr:
    """The first n positions are visible to all; a prefix LM is `CAUSAL | prefix(n)`."""
    return Prefix(n)


def sink(n: int) -> Expr:
    """The first n positions stay visible: the same rule as `prefix`, said of a sliding window."""
    return Prefix(n)


def band(axis: str, radius: int) -> Expr:
    if radius < 0:
        raise ValueError(f"mask: a band of radius {radius} hides everything; use 0 or more")
    return Band(axis, radius)


def disc(radius: float) -> Expr:
    """dy^2 + dx^2 < radius^2, strictly."""
    if not 0 < radius < math.inf:
        raise ValueError(f"mask: a disc of radius {radius}; give a positive number")
    # rounded up, which changes nothing beside integers: FlexAttention captures no float
    return Disc(math.ceil(radius**2))


def same(field: str) -> Expr:
    """Equal values of a field: documents (`same("item")`), rows (`same("y")`)."""
    return Group(field)


def equal(*fields: str) -> Expr:
    """Equal values of all the fields: axial attention along x is `equal("y")`."""
    return And(tuple(Group(field) for field in fields))


def part(axis: str, size: int, offset: int = 0) -> Expr:
    """Non-overlapping windows along an axis: (c + offset) // size agree."""
    return Group(axis, _positive("size", size), offset)


def residue(axis: str, modulus: int) -> Expr:
    """c_q and c_k agree modulo m: a dilated grid."""
    return Group(axis, modulus=_positive("modulus", modulus))


def q_is(field: str, *values: int) -> Expr:
    return _is("q", field, values)


def k_is(field: str, *values: int) -> Expr:
    return _is("k", field, values)


def _is(side: str, field: str, values: tuple[int, ...]) -> Expr:
    if not values:
        raise ValueError(f"mask: {side}_is of {field!r} without a value; give one or more")
    return Is(side, field, values)


def columns(positions: Tensor) -> Expr:
    """The keys at these positions are visible to all."""
    found = positions.flatten().tolist() if isinstance(positions, Tensor) else None
    if not found or not all(isinstance(n, int) and not isinstance(n, bool) and n >= 0 for n in found):
        what = f"a {type(positions).__name__}" if found is None else found
        raise ValueError(f"mask: columns at {what}; give a tensor of one position or more, integers from 0")
    table = torch.zeros(1, max(found) + 1, dtype=torch.bool)
    table[0, found] = True
    # one row of the table for every query: no position reaches a block that large
    return Table(table, "p", 2**62, 1)


def power_of_two(block: int) -> Expr:
    return PowerOfTwo(_positive("block", block))


def table(values: Tensor, *, field: str = "p", block: int | tuple[int, int] = 1) -> Expr:
    """A look-up of coarse ids: (rows, columns) bool, or (H, rows, columns) when heads differ."""
    if values.dtype != torch.bool or values.ndim not in (2, 3):
        raise ValueError(
            f"mask: a table is {values.dtype} of {tuple(values.shape)}; give bool of (rows, columns) or (H, ...)"
        )
    block_q, block_k = (block, block) if isinstance(block, int) else block
    return Table(values, field, _positive("block", block_q), _positive("block", block_k))


def visual(rule: Expr, base: Expr, *, across: Expr | None = None) -> Expr:
    """`rule` between tokens of one image, `across` between images (`base` when left out), `base` for all else.

    A token belongs to an image when its field `item` is not negative.
    """
    both = InImage()
    inside = both & same("item")
    return (inside & rule) | (both & ~same("item") & (base if across is None else across)) | (~both & base)


@dataclass(frozen=True)
class InImage(Expr):
    """Both tokens belong to some image."""

    def allow(self, at: View) -> Tensor:
        return (at.q("item") >= 0) & (at.k("item") >= 0)


def _positive(name: str, value: int) -> int:
    if value < 1:
        raise ValueError(f"mask: {name} {value} is too small; use 1 or more")
    return value
