"""What a mask is laid on: the integer fields of a row of tokens.

Fields that the atoms know: p (position), segment (packed sample; -1 is padding), item (image, view or document; -1 for
none), t, y, x (coordinates) and extent_p, extent_t, extent_y, extent_x (how far they go). Others can be added by name.

Shapes: R rows (1, or the batch), T tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

AXES = ("t", "y", "x")


@dataclass(frozen=True, eq=False)
class Tokens:
    """The integer fields of a row of tokens, each (R,T); -1 where a field does not apply."""

    fields: Mapping[str, Tensor]

    @classmethod
    def line(cls, length: int, *, start: int = 0, device: torch.device | str = "cpu") -> Tokens:
        """Plain text: positions start, start+1, ..."""
        p = torch.arange(start, start + length, device=device)[None]
        return cls({"p": p, "extent_p": torch.full_like(p, start + length)})

    @classmethod
    def grid(cls, *extent: int, item: int = 0, device: torch.device | str = "cpu") -> Tokens:
        """One image or video in raster order; extents are (x), (y, x) or (t, y, x)."""
        if not 1 <= len(extent) <= 3 or min(extent) < 1:
            raise ValueError(f"grid {extent} is impossible; give one to three extents of at least 1")
        places = torch.cartesian_prod(*(torch.arange(n, device=device) for n in extent)).reshape(-1, len(extent))
        p = torch.arange(len(places), device=device)[None]
        fields = {"p": p, "extent_p": torch.full_like(p, len(places)), "item": torch.full_like(p, item)}
        for axis, n, place in zip(AXES[-len(extent) :], extent, places.T):
            fields[axis] = place[None]
            fields[f"extent_{axis}"] = torch.full_like(p, n)
        return cls(fields)

    @classmethod
    def packed(cls, cu_seqlens: Tensor) -> Tokens:
        """Several sequences in one row; positions start again in each."""
        lengths = cu_seqlens.diff().long()
        segment = torch.repeat_interleave(torch.arange(len(lengths), device=lengths.device), lengths)
        p = torch.arange(len(segment), device=lengths.device) - cu_seqlens[:-1].long()[segment]
        return cls({"p": p[None], "extent_p": lengths[segment][None], "segment": segment[None]})

    @classmethod
    def padded(cls, valid: Tensor) -> Tokens:
        """(R,T) bool, or integers 0 and 1, to tokens: positions count the valid ones, the rest is padding."""
        if not isinstance(valid, Tensor) or valid.ndim != 2:
            what = f"shape {tuple(valid.shape)}" if isinstance(valid, Tensor) else type(valid).__name__
            raise ValueError(f"mask: valid tokens of {what}; give a tensor (rows, tokens), True or 1 for a token")
        if valid.dtype != torch.bool:
            whole = not valid.is_floating_point() and not valid.is_complex()
            if not whole or not torch.equal(valid, valid.bool().to(valid.dtype)):
                raise ValueError(f"mask: valid tokens of {valid.dtype}; give bool, or integers 0 and 1 and no others")
            valid = valid.bool()
        segment = torch.where(valid, 0, -1)
        count = valid.long().cumsum(1)
        p = torch.where(valid, count - 1, -1)
        return cls({"p": p, "extent_p": count[:, -1:].expand_as(count), "segment": segment})

    @classmethod
    def join(cls, parts: Sequence[Tokens]) -> Tokens:
        """One row after the other (text, image, text, ...); p counts on, a field that a part lacks is -1 there.

        A segment is 0: a part that says nothing of samples belongs to the first one, and is no padding.
        """
        names = dict.fromkeys(name for part in parts for name in part.fields)
        rows = max(part.rows for part in parts)
        fields = {}
        for name in names:
            lacking = 0 if name == "segment" else -1
            fields[name] = torch.cat(
                [part.fields.get(name, torch.full_like(part["p"], lacking)).expand(rows, -1) for part in parts], 1
            )
        fields["p"] = torch.arange(fields["p"].shape[1], device=fields["p"].device).expand(rows, -1)
        fields["extent_p"] = torch.full_like(fields["p"], fields["p"].shape[1])
        return cls(fields)

    @property
    def rows(self) -> int:
        return self["p"].shape[0]

    @property
    def length(self) -> int:
        return self["p"].shape[1]

    def __getitem__(self, name: str) -> Tensor:
        if name not in self.fields:
            raise ValueError(
                f"mask: the tokens carry {sorted(self.fields)}, not {name!r}; add it with .having({name}=...)"
            )
        return self.fields[name]

    def having(self, **fields: Tensor) -> Tokens:
        """The same tokens with more fields, or other values; each (T,) or (R,T)."""
        more = {name: value.long().reshape(-1, value.shape[-1]) for name, value in fields.items()}
        for name, value in more.items():
            if value.shape[1] != self.length:
                raise ValueError(
                    f"mask: field {name!r} has {value.shape[1]} values for {self.length} tokens; give one each"
                )
        many = {self.rows, *(value.shape[0] for value in more.values())}
        rows = max(many)
        if not many <= {1, rows}:
            raise ValueError(f"mask: fields of {sorted(many)} rows; give one for all, or one each")
        return Tokens({name: value.expand(rows, -1) for name, value in {**self.fields, **more}.items()})

    def take(self, index: Tensor | slice) -> Tokens:
        """The tokens at the places `index`, in that order."""
        return Tokens({name: value[:, index] for name, value in self.fields.items()})

    def row(self, row: int) -> Tokens:
        return Tokens({name: value[row % len(value)][None] for name, value in self.fields.items()})

    def to(self, device: torch.device | str) -> Tokens:
        return Tokens({name: value.to(device) for name, value in self.fields.items()})
