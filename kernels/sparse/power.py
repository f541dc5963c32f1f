"""PowerAttention: blocks of keys at power-of-two distances, so that what a token can reach doubles with every layer.

Paper:   PowerAttention: Exponentially Scaling of Receptive Fields for Effective Sparse Attention. arXiv:2503.03588
Rule:    causal softmax over the blocks at distance 0, 1, 2, 4, 8, ... from the query's own, over the nearest `local`
         blocks and over the first one
Where:   decoders on long context, after continued training; two of seven layers full for hard retrieval
Differs: nothing; `local` counts the query's own block
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gnomon.kernels import attend
from gnomon.kernels.checks import refuse
from gnomon.kernels.example import Example
from gnomon.kernels.mask import Bound, Everything, Expr, Mask, View, meet
from gnomon.kernels.masks.atoms import power_of_two, sink
from gnomon.kernels.op import Op, Result
from gnomon.kernels.sparse.base import AUTO, IMPLS
from gnomon.kernels.typed import typed


@dataclass(frozen=True)
class Near(Expr):
    """Fewer than `count` blocks lie between the query's block and the key's, which may be later."""

    block: int
    count: int

    def allow(self, at: View) -> Tensor:
        query, key = (torch.div(side("p"), self.block, rounding_mode="floor") for side in (at.q, at.k))
        return query - key < self.count


@typed
def rule(*, block: int = 256, local: int = 5, first: int = 1) -> Expr:
    """To be joined with CAUSAL: distances are between blocks, and the query's own is visible as a whole."""
    if block < 1 or local < 0 or first < 0:
        raise refuse("power", f"block {block}, local {local}, first {first}", "use block >= 1, local >= 0, first >= 0")
    return power_of_two(block) | Near(block, local) | sink(first * block)


@typed
def power(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    block: int = 256,
    local: int = 5,
    first: int = 1,
    mask: Mask = None,
    scale: float | None = None,
    cu_seqlens: Tensor | tuple[Tensor, Tensor] | None = None,
    impl: str = "auto",
) -> Result:
    """q (B,Q,H,D), k (B,K,Hk,D), v (B,K,Hk,V) -> o (B,Q,H,V); the mask is CAUSAL or something stricter.

    block  tokens per block; local: nearest blocks that are all visible; first: blocks of the beginning that stay so
    """
    if mask is None or isinstance(mask.expr if isinstance(mask, Bound) else mask, Everything):
        given = "None" if mask is None else "EVERYTHING"
        raise refuse("power", f"mask {given} lets tokens see the future", "pass mask=CAUSAL")
    mask = meet(rule(block=block, local=local, first=first), mask)
    return OP.run(impl, q, k, v, mask=mask, scale=scale, cu_seqlens=cu_seqlens)


OP = Op(
    name="power",
    impls=IMPLS,
    auto=AUTO,
    patterns=frozenset({"CS", "CC"}),
    masks=True,
    handmade=frozenset({"triton"}),
    cost=attend.cost,
    cascade=attend.CASCADE,
    example=lambda sizes: Example(options={"block": 2, "local": 1, "first": 0}),
    variants={"local": lambda sizes: Example(options={"block": 1, "local": 2, "first": 1})},
)
