"""Axial: every token over the tokens of its own row, or of its own column.

Paper:   Axial Attention in Multidimensional Transformers. arXiv:1912.12180
Rule:    softmax over the keys that agree with the query on every axis but `along`; two layers, one along each axis,
         reach everything
Where:   vision and multi-view encoders, one axis per layer
Differs: the shifted stack of the paper's autoregressive decoder is the model's business; CAUSAL is raster order here
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from gnomon.kernels import attend
from gnomon.kernels.checks import refuse
from gnomon.kernels.example import Example
from gnomon.kernels.mask import Expr, Mask, meet
from gnomon.kernels.masks.atoms import equal
from gnomon.kernels.masks.tokens import AXES
from gnomon.kernels.op import Op, Result
from gnomon.kernels.sparse.base import AUTO, IMPLS
from gnomon.kernels.typed import typed


@typed
def rule(along: str, axes: int = 2) -> Expr:
    """Equal coordinates on the other axes of a grid of so many."""
    names = AXES[-axes:]
    if along not in names or axes < 2:
        raise refuse("axial", f"no axis {along!r} beside another one among {list(names)}", "give along='x' or 'y'")
    return equal(*(axis for axis in names if axis != along))


@typed
def axial(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    grid: Sequence[int],
    along: str = "x",
    mask: Mask = None,
    scale: float | None = None,
    impl: str = "auto",
) -> Result:
    """q (B,T,H,D), k (B,T,Hk,D), v (B,T,Hk,V) -> o (B,T,H,V); T is the grid (y, x) or (t, y, x) in raster order."""
    mask = meet(rule(along, len(grid)), mask, grid=grid, device=q.device)
    return OP.run(impl, q, k, v, mask=mask, scale=scale)


OP = Op(
    name="axial",
    impls=IMPLS,
    auto=AUTO,
    patterns=frozenset({"NS", "CS"}),
    masks=True,
    grid=True,
    handmade=frozenset({"triton"}),
    cost=attend.cost,
    cascade=attend.CASCADE,
    example=lambda sizes: Example(options={"grid": sizes.grid}),
    variants={
        "columns": lambda sizes: Example(options={"grid": sizes.grid, "along": "y"}),
        "time": lambda sizes: Example(options={"grid": (3, 1, 5), "along": "t"}),
    },
)
