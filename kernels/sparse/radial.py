"""Radial: video tokens whose window shrinks with the distance in time, and then skips frames, as energy decays.

Paper:   Radial Attention: O(n log n) Sparse Attention with Energy Decay for Long Video Generation. arXiv:2506.19852
Rule:    frames of n tokens at distance d: all pairs for d <= 1; else tokens at most max(w decay, block) places apart
         in their frames, where w = 2^bits(n) / 2^bits(d); and where w < block, only d that block / w divides; the
         keys of the first frame are always visible
Where:   video encoders and generators; with LoRA beyond the length of training
Differs: exact per pair, where the release rounds to blocks of 128 by a vote; neighbouring frames stay whole also when
         frames are small
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from gnomon.kernels import attend
from gnomon.kernels.checks import refuse
from gnomon.kernels.example import Example, Sizes
from gnomon.kernels.mask import Bound, Expr, Mask, Or, kept, meet
from gnomon.kernels.masks.atoms import band, k_is, table
from gnomon.kernels.masks.keeping import remembered
from gnomon.kernels.masks.tokens import Tokens
from gnomon.kernels.op import Op, Result
from gnomon.kernels.sparse.base import AUTO, IMPLS
from gnomon.kernels.typed import typed

ACROSS_IMAGES = True
"""In decoders the rule holds between images, too: they are its frames."""


def reach(distance: int, size: int, *, decay: float = 1.0, block: int = 128) -> float | None:
    """How far apart in their frames of `size` tokens a pair may be; None for frames that do not see each other."""
    if distance <= 1:
        return size
    width = 2.0 ** (size.bit_length() - distance.bit_length())
    if width < block and distance % int(block // width):
        return None
    return max(width * decay, block)


# kept: a rule with tables equals itself alone, and its lowerings are kept with it
@typed
@remembered
def rule(frames: int, size: int, *, decay: float = 1.0, block: int = 128, first: bool = True) -> Expr:
    """On tokens with the fields `t` and `place` (in the frame)."""
    if not 0 < decay <= 1 or block < 1:
        raise refuse("radial", f"decay {decay}, block {block}", "use 0 < decay <= 1, block >= 1")
    widths = [reach(distance, size, decay=decay, block=block) for distance in range(frames)]
    apart = (torch.arange(frames)[:, None] - torch.arange(frames)).abs()
    parts: list[Expr] = [k_is("t", 0)] if first else []
    for width in dict.fromkeys(w for w in widths if w is not None):
        pairs = torch.tensor([w == width for w in widths])[apart]
        near = table(pairs, field="t")
        parts.append(near if width >= size else near & band("place", int(width)))
    return Or(tuple(parts))


@typed
def radial(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    grid: Sequence[int],
    decay: float = 1.0,
    block: int = 128,
    first: bool = True,
    mask: Mask = None,
    scale: float | None = None,
    impl: str = "auto",
) -> Result:
    """q (B,T,H,D), k (B,T,Hk,D), v (B,T,Hk,V) -> o (B,T,H,V); T is the grid (t, y, x) in raster order.

    decay  shrinks the windows; block: their least width; first: whether the first frame is seen by all
    """
    if len(grid) != 3 or min(grid) < 1:
        raise refuse("radial", f"grid {tuple(grid)}, which is no video", "use (t, y, x), each at least 1")
    mask = meet(rule(grid[0], grid[1] * grid[2], decay=decay, block=block, first=first), mask)
    if isinstance(mask, Expr):
        mask = _on_video(mask, tuple(grid), q.device)
    return OP.run(impl, q, k, v, mask=mask, scale=scale)


@kept
def _on_video(rule: Expr, grid: tuple[int, int, int], device: torch.device) -> Bound:
    tokens = Tokens.grid(*grid, device=device)
    return rule.on(tokens.having(place=tokens["y"] * grid[2] + tokens["x"]))


def _example(**options: object) -> Callable[[Sizes], Example]:
    return lambda sizes: Example(options={"grid": (sizes.grid[0], 1, sizes.grid[1]), "block": 1, **options})


OP = Op(
    name="radial",
    impls=IMPLS,
    auto=AUTO,
    patterns=frozenset({"NS", "CS"}),
    masks=True,
    grid=True,
    handmade=frozenset({"triton"}),
    cost=attend.cost,
    cascade=attend.CASCADE,
    example=_example(first=False),
    variants={"first frame": _example(decay=0.5)},
)
