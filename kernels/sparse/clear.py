"""CLEAR: image tokens over a disc around them; text sees and is seen by everything.

Paper:   CLEAR: Conv-Like Linearization Revs Pre-Trained Diffusion Transformers Up. arXiv:2412.16112
Rule:    softmax over the keys of the same image with dy^2 + dx^2 < r^2, strictly and clipped at the borders; any pair
         with a token of no image is visible; scale may grow with the length, sqrt(log n / (D log n_0))
Where:   vision encoders and joint text-image attention at high resolution, after distillation
Differs: without the copy of the keys pooled by four that the paper tries for the image queries
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from gnomon.kernels import attend
from gnomon.kernels.checks import refuse
from gnomon.kernels.example import Example
from gnomon.kernels.mask import Expr, Mask, meet
from gnomon.kernels.masks.atoms import InImage, disc, same
from gnomon.kernels.op import Op, Result
from gnomon.kernels.sparse.base import AUTO, IMPLS
from gnomon.kernels.typed import typed


@typed
def rule(radius: float) -> Expr:
    return ~InImage() | (same("item") & disc(radius))


@typed
def clear(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    radius: float,
    grid: Sequence[int] | None = None,
    trained_on: int | None = None,
    mask: Mask = None,
    scale: float | None = None,
    impl: str = "auto",
) -> Result:
    """q (B,T,H,D), k (B,T,Hk,D), v (B,T,Hk,V) -> o (B,T,H,V); T is the grid (y, x), unless `mask` has tokens.

    trained_on  tokens per sequence in training: gives the scale that keeps the entropy at more of them
    """
    if trained_on is not None:
        if scale is not None or trained_on < 2:
            raise refuse("clear", f"trained_on {trained_on} beside scale {scale}", "give one of them, trained_on >= 2")
        scale = math.sqrt(math.log(max(k.shape[1], 2)) / math.log(trained_on) / q.shape[-1])
    return OP.run(impl, q, k, v, mask=meet(rule(radius), mask, grid=grid, device=q.device), scale=scale)


OP = Op(
    name="clear",
    impls=IMPLS,
    auto=AUTO,
    patterns=frozenset({"NS", "CS"}),
    masks=True,
    grid=True,
    handmade=frozenset({"triton"}),
    cost=attend.cost,
    cascade=attend.CASCADE,
    example=lambda sizes: Example(options={"grid": sizes.grid, "radius": 2}),
    variants={"longer": lambda sizes: Example(options={"grid": sizes.grid, "radius": 1.5, "trained_on": 9})},
)
