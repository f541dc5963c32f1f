"""ReductionPlan: which tokens remain, and of which tokens each is made, as data.

A plan is a sparse linear map X' = M [X; E]. Whoever makes one touches no model; whoever applies one (executor.py) knows
no method. Plans compose, so that reductions stack.

Shapes: G groups, N tokens before, T after, g sources per token, E extra tokens, C width.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal

import torch
from torch import Tensor

from gnomon.vlm.layout import Movable

Position = Literal["keep", "repack", "centroid"]
"""Position ids after a reduction: survivors keep theirs; all are counted anew; a merged token has its sources' mean."""

_FEW = 16
"""Up to so many sources each, adding them up is less work than multiplying by the matrix."""


@dataclass(frozen=True)
class ReductionPlan(Movable):
    """For G groups (images, or rows of a batch) of N tokens each:

    index   (G,T,g) long     the sources of each output token; N + e is extra token e
    weight  (G,T,g) | None   what each source is multiplied by; None: g is 1 and tokens survive as they are
    extra   (G,E,C) | None   further sources, such as a class token, which are no tokens of the group
    count   (G,) long | None how many of the T are real, the rest is padding; None: all
    size    (G,T) | None     how many tokens each stands for, where a method keeps book
    """

    index: Tensor
    weight: Tensor | None = None
    extra: Tensor | None = None
    count: Tensor | None = None
    size: Tensor | None = None

    def __post_init__(self) -> None:
        assert self.index.dim() == 3 and (self.weight is not None or self.index.shape[2] == 1)

    @classmethod
    def keep(cls, index: Tensor, count: Tensor | None = None) -> ReductionPlan:
        """(G,T) tokens survive, in this order."""
        return cls(index[..., None], count=count)

    @classmethod
    def keep_where(cls, mask: Tensor) -> ReductionPlan:
        """(G,N) bool: these survive, in their own order; groups may keep different numbers."""
        count = mask.sum(1)
        order = torch.argsort(~mask, dim=1, stable=True)
        return cls.keep(order[:, : int(count.max())], count)

    @classmethod
    def merge(cls, owner: Tensor, length: int, mass: Tensor | None = None) -> ReductionPlan:
        """(G,N) the one of `length` output tokens that each goes into, or -1: the mean, weighted by mass (G,N)."""
        mass = torch.ones_like(owner, dtype=torch.float32) if mass is None else mass.float()
        place = torch.where(owner < 0, length, owner)
        order = torch.argsort(place, dim=1, stable=True)
        empty = mass.new_zeros(len(owner), length + 1)
        members = empty.scatter_add(1, place, torch.ones_like(mass))[:, :length].long()
        size = empty.scatter_add(1, place, mass)[:, :length]
        slot = torch.arange(int(members.max()), device=owner.device)
        first = members.cumsum(1) - members
        index = order.gather(1, (first[..., None] + slot).clamp(max=owner.shape[1] - 1).flatten(1))
        weight = mass.gather(1, index).view(*size.shape, -1) * (slot < members[..., None])
        weight = weight / size[..., None].clamp(min=1e-12)
        return cls(index.view(weight.shape), weight, size=size)

    @classmethod
    def identity(cls, groups: int, length: int, device: torch.device | str = "cpu") -> ReductionPlan:
        return cls.keep(torch.arange(length, device=device).expand(groups, length))

    def at(self, groups: Tensor) -> ReductionPlan:
        """Of these groups alone."""
        parts = {f.name: getattr(self, f.name) for f in fields(self)}
        return ReductionPlan(**{name: None if part is None else part[groups] for name, part in parts.items()})

    @property
    def length(self) -> int:
        return self.index.shape[1]

    @property
    def counts(self) -> Tensor:
        """(G,) real output tokens."""
        if self.count is not None:
            return self.count
        return torch.full(self.index.shape[:1], self.length, device=self.index.device)

    @property
    def real(self) -> Tensor:
        """(G,T) bool: which output tokens are not padding."""
        return torch.arange(self.length, device=self.index.device) < self.counts[:, None]

    @property
    def anchor(self) -> Tensor:
        """(G,T) the source that counts most (the first of equals): its place is the token's place."""
        if self.weight is None:
            return self.index[..., 0]
        return self.index.gather(2, self.weight.argmax(2, keepdim=True))[..., 0]

    def survivors(self, length: int) -> Tensor:
        """(G,N) bool: tokens that are the anchor of an output token."""
        kept = torch.zeros(len(self.index), length + 1, dtype=torch.bool, device=self.index.device)
        place = torch.where(self.real & (self.anchor < length), self.anchor, length)
        return kept.scatter_(1, place, True)[:, :length]

    def owner(self, length: int) -> Tensor:
        """(G,N) the output token that each token is a source of, -1 for none."""
        used = self.real[..., None] & (self.index < length)
        if self.weight is not None:
            used = used & (self.weight != 0)
        number = torch.arange(self.length, device=self.index.device)[None, :, None].expand_as(self.index)
        place = torch.where(used, self.index, length).flatten(1)
        owner = place.new_full((len(place), length + 1), -1)
        return owner.scatter_(1, place, number.flatten(1))[:, :length]

    def apply(self, tokens: Tensor) -> Tensor:
        """(G,N,C) to (G,T,C); padding is zero."""
        if self.extra is not None:
            tokens = torch.cat([tokens, self.extra.to(tokens.dtype)], 1)
        if self.weight is None:
            out = tokens.gather(1, self.index.expand(-1, -1, tokens.shape[2]))
        elif self.index.shape[2] <= _FEW:
            sources = zip(self.index.split(1, 2), self.weight.split(1, 2))
            out = sum(w * tokens.gather(1, i.expand(-1, -1, tokens.shape[2])) for i, w in sources).to(tokens.dtype)
        else:
            shape = (len(self.index), self.length, tokens.shape[1])
            matrix = torch.zeros(shape, dtype=self.weight.dtype, device=tokens.device)
            matrix = matrix.scatter_add(2, self.index, self.weight)
            out = matrix.to(tokens.dtype) @ tokens
        return out if self.count is None else out * self.real[..., None]

    def average(self, values: Tensor) -> Tensor:
        """(G,N,A) what tokens carry, to (G,T,A): the weighted mean over the sources; of an extra token, over all."""
        index = self.index.clamp(max=values.shape[1] - 1)
        weight = (
            torch.ones_like(index, dtype=values.dtype) if self.weight is None else self.weight.to(values.dtype).abs()
        )
        weight = weight * (self.index < values.shape[1])
        groups = torch.arange(len(index), device=index.device)[:, None, None]
        mean = (values[groups, index] * weight[..., None]).sum(2) / weight.sum(2).clamp(min=1e-12)[..., None]
        return torch.where(weight.sum(2)[..., None] > 0, mean, values.mean(1, keepdim=True))

    def then(self, after: ReductionPlan, length: int) -> ReductionPlan:
        """This plan of `length` tokens, and `after` it another: one plan for both."""
        own = 0 if self.extra is None else self.extra.shape[1]
        mine = after.index < self.length
        inner = after.index.clamp(max=self.length - 1)
        shape = (*inner.shape, self.index.shape[2])
        flat = inner.flatten(1)[..., None].expand(-1, -1, shape[-1])
        index = self.index.gather(1, flat).view(shape)
        # extra tokens of the second plan come after those of the first
        index = torch.where(mine[..., None], index, (after.index - self.length + length + own)[..., None])
        weight, size = None, after.size
        if self.weight is not None or after.weight is not None:
            outer = torch.ones(inner.shape, device=index.device) if after.weight is None else after.weight
            first = torch.ones_like(index, dtype=outer.dtype)
            if self.weight is not None:
                first = self.weight.to(outer.dtype).gather(1, flat).view(shape)
            # a source that is an extra token stands once, not once per source of the token in its place
            once = torch.arange(shape[-1], device=index.device) == 0
            weight = (outer[..., None] * torch.where(mine[..., None], first, once.to(outer.dtype))).flatten(2)
        extras = [plan.extra for plan in (self, after) if plan.extra is not None]
        extra = torch.cat(extras, 1) if extras else None
        return ReductionPlan(index.flatten(2), weight, extra, after.count, size)
