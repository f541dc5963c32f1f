"""S2: causal attention inside of groups of tokens, shifted by half a group on half of the heads.

Paper:   LongLoRA: Efficient Fine-tuning of Long-Context Large Language Models. arXiv:2309.12307
Rule:    heads of the first half see the tokens of their group [0,g), [g,2g), ...; those of the second half the groups
         [0,g/2), [g/2,3g/2), ...
Where:   long-context fine-tuning of decoders (with trainable embeddings and norms); inference is exact attention
Differs: the last half group is a group of its own, where the paper's shift by rolling joins it to the beginning and
         lets that see the future; packed samples never share a group
"""

from __future__ import annotations

import torch
from torch import Tensor

from gnomon.kernels import attend
from gnomon.kernels.checks import check_qkv, refuse
from gnomon.kernels.example import Example
from gnomon.kernels.mask import And, Bound, ByHead, Expr, Mask, by_head, meet
from gnomon.kernels.masks.atoms import part
from gnomon.kernels.masks.groups import groups
from gnomon.kernels.masks.keeping import once
from gnomon.kernels.op import Impl, Op, Result, Shape, State
from gnomon.kernels.sparse.base import AUTO, IMPLS
from gnomon.kernels.typed import typed

ONLY_TRAINING = True
"""Decoders are trained with it, and read with softmax attention."""


@typed
def rule(group: int, heads: int) -> Expr:
    if heads < 2:
        raise refuse("s2", "1 head cannot be shifted against another", "give 2 heads or more")
    if group < 2:
        raise refuse("s2", f"a group of {group} cannot be shifted by half", "use 2 or more")
    return by_head({range(heads // 2): part("p", group)}, part("p", group, group // 2))


@typed
def s2(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    group: int | None = None,
    mask: Mask = None,
    scale: float | None = None,
    cu_seqlens: Tensor | None = None,
    impl: str = "auto",
) -> Result:
    """q (B,T,H,D), k (B,T,Hk,D), v (B,T,Hk,V) -> o (B,T,H,V).

    group  tokens; a quarter of the sequence when left out
    """
    check_qkv("s2", q, k, v)
    length, heads = k.shape[1], max(x.shape[2] for x in (q, k, v))
    if q.shape[1] != length:
        raise refuse("s2", f"{q.shape[1]} queries for {length} keys", "use exact attention for decoding")
    if group is None and cu_seqlens is not None:
        raise refuse("s2", "cu_seqlens without a size of the groups", "give group=...")
    group = max(length // 4, 2) if group is None else group
    return OP.run(impl, q, k, v, mask=meet(rule(group, heads), mask), scale=scale, cu_seqlens=cu_seqlens)


def halves(q: Tensor, k: Tensor, v: Tensor, *, mask: Bound, scale: float, state: State | None = None) -> Result:
    """Each half of the heads is a batch of small dense attentions."""
    cut = q.shape[2] // 2
    parts = []
    for bound, heads in zip(_branches(mask), (slice(0, cut), slice(cut, None))):
        parts.append(attend.group(q[:, :, heads], k[:, :, heads], v[:, :, heads], mask=bound, scale=scale)[0])
    return torch.cat(parts, 2), None


def halves_refuse(shape: Shape, mask: Bound) -> str | None:
    half = [tuple(range(shape.heads // 2))]
    if any(isinstance(f, ByHead) and [heads for heads, _ in f.branches] != half for f in _factors(mask)):
        return "the mask tells apart other heads than the two halves"
    if any(groups(bound) is None for bound in _branches(mask)):
        return "the mask is no equivalence on each half of the heads"
    return None


def _branches(mask: Bound) -> tuple[Bound, ...]:
    """The mask of the first heads and of the others; kept with the mask of all."""

    def halved() -> tuple[Bound, ...]:
        both = [factor for factor in _factors(mask) if not isinstance(factor, ByHead)]
        each = [factor for factor in _factors(mask) if isinstance(factor, ByHead)]
        first = And((*both, *(factor.branches[0][1] for factor in each)))
        second = And((*both, *(factor.otherwise for factor in each)))
        return tuple(Bound(expr, mask.q, mask.k) for expr in (first, second))

    return once(mask.cache, "halves", halved)


def _factors(mask: Bound) -> list[Expr]:
    return mask.expr.factors() if isinstance(mask.expr, And) else [mask.expr]


OP = Op(
    name="s2",
    impls={**IMPLS, "group": Impl(halves, halves_refuse, packed=True)},
    auto=AUTO,
    patterns=frozenset({"NS", "CS"}),
    masks=True,
    handmade=frozenset({"triton"}),
    cost=attend.cost,
    cascade=attend.CASCADE,
    example=lambda sizes: Example(options={"group": 4}),
)
