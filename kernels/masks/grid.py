"""Windows on grids: constant size, shifted at the borders, with stride, dilation and causality per axis.

Rule, per axis of length L with window w, stride s, dilation d: tokens see those of their own residue class modulo d; in
the class (length L', own place i), the window belongs to the middle of the query's stride group and is moved, never
shrunk, until it fits. A causal axis sees the w places that end at the end of the stride group, and nothing after i.
Rules of several axes combine with `&`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gnomon.kernels.mask import And, Expr, View
from gnomon.kernels.masks.tokens import AXES, Tokens


@dataclass(frozen=True)
class Window(Expr):
    axis: str
    size: int
    stride: int = 1
    dilation: int = 1
    causal: bool = False

    def check(self, tokens: Tokens) -> None:
        extent = tokens[f"extent_{self.axis}"]
        shortest = int(torch.where(extent > 0, extent, extent.max()).min())
        if self.size * self.dilation > shortest > 0:
            raise ValueError(
                f"mask: a window of {self.size} at dilation {self.dilation} exceeds axis {self.axis} of {shortest}; "
                "use a smaller one"
            )

    def allow(self, at: View) -> Tensor:
        query, key, length = at.q(self.axis), at.k(self.axis), at.q(f"extent_{self.axis}")
        residue = query % self.dilation
        # the residue class has one place more where the axis does not divide
        length = _floor(length, self.dilation) + (residue < length % self.dilation).long()
        mine, theirs = _floor(query, self.dilation), _floor(key, self.dilation)
        left = self.size // 2
        right = left + self.size % 2 - 1
        group = _floor(mine, self.stride) * self.stride
        if self.causal:
            start = (torch.minimum(group + self.stride - 1, length - 1) - (self.size - 1)).clamp(min=0)
            inside = (theirs >= start) & (theirs <= mine)
        else:
            middle = torch.minimum(torch.minimum(group + self.stride // 2, length - 1), length - 1 - right)
            start = middle.clamp(min=left) - left
            inside = (theirs >= start) & (theirs < start + self.size)
        return inside & (residue == key % self.dilation)


def window(axis: str, size: int, *, stride: int = 1, dilation: int = 1, causal: bool = False) -> Expr:
    """One axis of generalized neighbourhood attention."""
    if not 1 <= stride <= size or dilation < 1:
        raise ValueError(
            f"mask: window {size}, stride {stride}, dilation {dilation}; use 1 <= stride <= window and 1 <= dilation"
        )
    return Window(axis, size, stride, dilation, causal)


def windows(
    size: Sequence[int],
    *,
    stride: Sequence[int] | int = 1,
    dilation: Sequence[int] | int = 1,
    causal: Sequence[bool] | bool = False,
) -> Expr:
    """All axes at once: (x), (y, x) or (t, y, x)."""
    if not 1 <= len(size) <= len(AXES):
        raise ValueError(f"mask: windows {tuple(size)} of {len(size)} axes; give one to three, the last of (t, y, x)")
    axes = AXES[-len(size) :]

    def each(option: Sequence[int] | int) -> list[int]:
        values = [option] * len(size) if isinstance(option, int) else list(option)
        if len(values) != len(size):
            raise ValueError(f"mask: window options {values} for {len(size)} axes; give one value, or one per axis")
        return values

    return And(
        tuple(
            window(axis, w, stride=s, dilation=d, causal=bool(c))
            for axis, w, s, d, c in zip(axes, size, each(stride), each(dilation), each(causal))
        )
    )


def _floor(value: Tensor, by: int) -> Tensor:
    return torch.div(value, by, rounding_mode="floor")
