"""TokenReducer: from what is known about visual tokens, a plan of what remains of them.

A reducer is a pure function of its context: it keeps no state and never touches the model. The executor makes the
context, bringing groups of equal size together, applies the plan, and looks after positions, labels, masks and caches.

Shapes: G groups, N visual tokens each, C width, D key width, H heads, Q text tokens, R score rows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from gnomon.vlm.part import Part
from gnomon.vlm.plan import Position, ReductionPlan


class Stage(Enum):
    """Where a reducer acts, in the order of a forward pass.

    PIXEL           before the encoder: cells that it need not see
    VIT_LAYER       inside the encoder's blocks
    POST_ENCODER    on the encoder's features, before the connector
    POST_PROJECTOR  on features at the language model's width
    LLM_LAYER       between two decoder layers, in the prefill
    """

    PIXEL = "pixels"
    VIT_LAYER = "encoder layers"
    POST_ENCODER = "after the encoder"
    POST_PROJECTOR = "after the connector"
    LLM_LAYER = "decoder layers"


@dataclass
class ReduceContext:
    """What a plan may be made from. A field is there when the reducer's `needs` list it; the first four always are.

    Before the language model a group is one image (or one crop of it); between its layers, one row of the batch
    (packed: one document of it). All groups of a context have the same N.

    feats          (G,N,C)   the tokens that the plan will be applied to
    names          G         what a random choice is seeded with: the sample's id, and the image's number in it
    cell           (G,N,2)   row and column of each token on its image's grid
    image          (G,N)     number of the image, within its row, that each token stems from
    grid           (h,w)     N is h*w in raster order

    of the encoder:
    saliency       (G,N)     attention of the class token, mean over heads; without one, received attention
    keys           (G,N,D)   keys of the block that the features come from, mean over heads, not scaled
    wide_saliency  (G,N)     the class token's attention with all heads as one head
    wide_keys      (G,N,HD)  keys of all heads side by side
    cls            (G,C)     the class token itself; None where an encoder has none
    pixels         (G,3,H,W) images in 0..1
    xyz            (G,N,3)   where each token's surface is, in metres

    inside the encoder, where `layer` is the block acted in, one of `steps`, `full` the N of the first one:
    keys           (G,N,D)   keys of this block
    size           (G,N)     how many cells each token stands for
    prefix                   number of class and register tokens, which stand before the others and are not in N

    of the decoder, where `layer` is the layer acted before, `step` its number in `layers`, `full` the first layer's N:
    visual         (G,N)     the visual tokens' positions in their row
    text_at        (G,Q)     text tokens' positions in their row, -1 for none; answers that are trained on do not count
    text           (G,Q,C)   text embeddings, as the first layer got them
    first          (G,F,C)   visual embeddings, as the first layer got them
    rows           (G,R,N)   attention of the asking rows (see `queries`), mean over heads, softmax over all they see
    head_rows      (G,H,R,N) the same, head by head
    received       (G,N)     attention that each token gets from all rows together, mean over heads
    asking         (G,R)     the asking rows' positions in their row, -1 for none
    lm_keys        (G,S,HD)  the layer's keys with rotary applied, heads side by side, of the whole row
    normed         (G,S,C)   the whole row after the final norm
    rotary         (G,S,2E)  the layer's rotary tables for the whole row, cosines and sines side by side
    """

    feats: Tensor
    names: list[str]
    cell: Tensor
    image: Tensor
    grid: tuple[int, int] | None = None
    saliency: Tensor | None = None
    keys: Tensor | None = None
    wide_saliency: Tensor | None = None
    wide_keys: Tensor | None = None
    cls: Tensor | None = None
    pixels: Tensor | None = None
    xyz: Tensor | None = None
    layer: int | None = None
    step: int = 0
    steps: int = 0
    full: int = 0
    size: Tensor | None = None
    prefix: int = 0
    visual: Tensor | None = None
    text_at: Tensor | None = None
    text: Tensor | None = None
    first: Tensor | None = None
    rows: Tensor | None = None
    head_rows: Tensor | None = None
    received: Tensor | None = None
    asking: Tensor | None = None
    lm_keys: Tensor | None = None
    normed: Tensor | None = None
    rotary: Tensor | None = None


class TokenReducer(Part):
    """A subclass says where it acts and what it needs, and makes plans. Constructor arguments are the options.

    ratio is the kept share of the tokens, in (0, 1]; 1 leaves the model untouched.
    position is how ids go on; None: numbered anew before the language model, kept inside it, and always kept where ids
    have three axes, because those hold the image's layout.

    adaptive: whether how many remain depends on the image. ordered: whether survivors come in raster order.

    For decoder layers:
    layers   acts before each of these (0 is the first), counted in steps by `ctx.step`
    score    "previous": attention of the layer before; "own": queries and keys of the layer itself, not run yet
    queries  which positions of a row ask; by default its last token, and in training those right before the answers

    For PIXEL and VIT_LAYER:
    inside   whether it acts in the encoder, or on what the encoder yields; None: inside where the encoder's blocks
             can be walked (blocks.py) and the connector merges no cells
    """

    stage: Stage
    needs: frozenset[str] = frozenset()
    adaptive: bool = False
    ordered: bool = True
    position: Position | None = None
    layers: tuple[int, ...] = ()
    score: Literal["previous", "own"] = "previous"
    inside: bool | None = None

    def __init__(self, ratio: float = 1.0, *, position: Position | None = None) -> None:
        if isinstance(ratio, bool) or not isinstance(ratio, (int, float)) or not 0 < ratio <= 1:
            raise ValueError(
                f"{type(self).__name__}: ratio {ratio!r} is not in (0, 1]; give the share of tokens to keep"
            )
        if position not in (None, "keep", "repack", "centroid"):
            raise ValueError(f"{type(self).__name__}: position {position!r} is unknown; use keep, repack or centroid")
        self.ratio = float(ratio)
        self.position = position or type(self).position

    def budget(self, length: int, step: int = 0) -> int:
        """Tokens kept of `length`: at least one, and no half tokens (ratio * N rounded up)."""
        # the small slack keeps 0.1 * 30 = 3.0000000000000004 from becoming 4
        return min(length, max(1, math.ceil(self.ratio * length - 1e-6)))

    def idle(self) -> bool:
        """Whether the options leave every model untouched."""
        return self.ratio == 1

    def plan(self, ctx: ReduceContext) -> ReductionPlan:
        raise NotImplementedError

    def queries(self, ctx: ReduceContext) -> Tensor | None:
        """(G,R) positions of the asking rows, -1 for none; None, or a row of -1: those by default."""
        return None


def top(scores: Tensor, count: int) -> Tensor:
    """(G,count) the largest of (G,N) scores in raster order; of equals the first, on every device."""
    order = torch.argsort(scores, dim=1, descending=True, stable=True)
    return order[:, :count].sort(1).values


def outliers(scores: Tensor) -> Tensor:
    """(G,N) bool: which of the scores lie above the upper fence of a box plot, Q3 + 1.5 (Q3 - Q1)."""
    low, high = torch.quantile(scores, scores.new_tensor([0.25, 0.75]), dim=1, keepdim=True)
    return scores > high + 1.5 * (high - low)


def absorb(
    scores: Tensor, keys: Tensor, order: Tensor, count: Tensor, *, neighbours: int, spare: bool
) -> ReductionPlan:
    """The first `count` (G,) tokens of `order` (G,N), each plus its nearest others weighed with their scores (G,N).

    Nearest is the cosine of keys (G,N,D), and kept tokens count too. spare: one more token in the end is the sum of all
    that are left out, weighed likewise, in the place of the first of them.
    """
    length = scores.shape[1]
    anchor = order[:, : int(count.max()) + spare]
    unit = F.normalize(keys.float(), dim=-1)
    alike = unit.gather(1, anchor[..., None].expand(-1, -1, unit.shape[2])) @ unit.mT
    alike = alike.scatter(2, anchor[..., None], float("-inf"))
    sources = _largest(alike, min(neighbours, length - 1)).float()
    own = torch.ones_like(anchor, dtype=scores.dtype)
    if spare:
        last = torch.arange(anchor.shape[1], device=order.device) == count[:, None]
        left = (order.argsort(1) >= count[:, None])[:, None].to(sources.dtype)
        sources = torch.where(last[..., None], left.expand_as(sources).scatter(2, anchor[..., None], 0.0), sources)
        own = torch.where(last, scores.gather(1, anchor), own)
    # a token's own place is its first source; behind it stand all tokens, mostly with weight 0
    index = torch.cat([anchor[..., None], torch.arange(length, device=order.device).expand_as(sources)], 2)
    weight = torch.cat([own[..., None], sources * scores[:, None]], 2)
    return ReductionPlan(index, weight, count=count + spare)


def farthest(distance: Tensor, first: Tensor, count: int) -> Tensor:
    """(G,count) tokens: `first` (G,1), then each time the one whose nearest chosen one, by (G,N,N), is farthest."""
    # nearer than anything can be: what is chosen is never the farthest again
    distance = distance.diagonal_scatter(distance.new_full(distance.shape[:2], -1), dim1=1, dim2=2)
    picks, nearest = [first], None
    for _ in range(count - 1):
        row = distance.gather(1, picks[-1][..., None].expand(-1, -1, distance.shape[2]))[:, 0]
        nearest = row if nearest is None else torch.minimum(nearest, row)
        picks.append(nearest.argmax(1, keepdim=True))
    return torch.cat(picks, 1)


def _largest(values: Tensor, count: int) -> Tensor:
    """Bool: the `count` largest along the last axis, of equals the first; without sorting all."""
    if count == 0:
        return torch.zeros_like(values, dtype=torch.bool)
    least = values.topk(count, dim=-1).values[..., -1:]
    above, equal = values > least, values == least
    return above | (equal & (equal.cumsum(-1) <= count - above.sum(-1, keepdim=True)))
