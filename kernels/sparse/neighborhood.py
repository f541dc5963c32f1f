"""Generalized neighborhood: every token over a window of fixed size around it, on a line, an image or a video.

Paper:   Generalized Neighborhood Attention: Multi-dimensional Sparse Attention at the Speed of Light.
         arXiv:2504.16922
Rule:    softmax over the keys that lie, on every axis, in the window of the query's stride group; windows are shifted
         at the borders, never shrunk; causal axes see what came before, dilated ones their residue class
Where:   vision and multi-view encoders; training-free in pretrained ones when the window is at least half of the
         extent
Differs: no relative position bias; keys outside of the grid (text, registers) come in through the mask language
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from gnomon.kernels import attend
from gnomon.kernels.checks import refuse
from gnomon.kernels.example import Example, Sizes
from gnomon.kernels.mask import EVERYTHING, Bound, Expr, Mask, meet
from gnomon.kernels.masks.atoms import part, residue
from gnomon.kernels.masks.grid import windows
from gnomon.kernels.masks.tokens import AXES
from gnomon.kernels.op import Op, Result
from gnomon.kernels.sparse.base import AUTO, IMPLS
from gnomon.kernels.typed import typed


@typed
def rule(
    grid: Sequence[int] | None,
    window: Sequence[int],
    *,
    stride: Sequence[int] | int = 1,
    dilation: Sequence[int] | int = 1,
    causal: Sequence[bool] | bool = False,
) -> Expr:
    """The windows; axes on which they come down to separate blocks are said as blocks, which need no sparse kernel."""
    per_axis = windows(window, stride=stride, dilation=dilation, causal=causal)
    if grid is None or len(grid) != len(window):
        return per_axis
    whole: Expr = EVERYTHING
    for axis, extent, one in zip(AXES[-len(grid) :], grid, per_axis.children()):
        reach = one.size * one.dilation
        if one.causal or extent % reach or (one.stride < one.size and reach < extent):
            whole = whole & one
            continue
        if reach < extent:
            whole = whole & part(axis, reach)
        if one.dilation > 1:
            whole = whole & residue(axis, one.dilation)
    return whole


@typed
def neighborhood(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    window: Sequence[int],
    grid: Sequence[int] | None = None,
    stride: Sequence[int] | int = 1,
    dilation: Sequence[int] | int = 1,
    causal: Sequence[bool] | bool = False,
    mask: Mask = None,
    scale: float | None = None,
    impl: str = "auto",
) -> Result:
    """q (B,T,H,D), k (B,T,Hk,D), v (B,T,Hk,V) -> o (B,T,H,V); T is the grid (x), (y, x) or (t, y, x) in raster order.

    Options are per axis. Where `mask` has tokens with coordinates, these are the grid, and none need be given.
    """
    if grid is not None and len(grid) != len(window) and not isinstance(mask, Bound):
        raise refuse("neighborhood", f"window {tuple(window)} on grid {tuple(grid)}", "give as many extents of both")
    mine = rule(None if isinstance(mask, Bound) else grid, window, stride=stride, dilation=dilation, causal=causal)
    return OP.run(impl, q, k, v, mask=meet(mine, mask, grid=grid, device=q.device), scale=scale)


def _example(grid: tuple[int, ...], **options: object) -> Callable[[Sizes], Example]:
    return lambda sizes: Example(options={"grid": grid, **options})


OP = Op(
    name="neighborhood",
    impls=IMPLS,
    auto=AUTO,
    patterns=frozenset({"NS", "CS"}),
    masks=True,
    grid=True,
    handmade=frozenset({"triton"}),
    cost=attend.cost,
    cascade=attend.CASCADE,
    example=_example((3, 5), window=(2, 3)),
    variants={
        "line": _example((15,), window=(7,), stride=3, dilation=2),
        "video": _example((3, 1, 5), window=(2, 1, 4), stride=(1, 1, 2), causal=(True, False, False)),
    },
)
