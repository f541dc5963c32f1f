"""VisualCompute: what decoder layers compute for visual tokens, when that is less than for text.

A policy says it layer by layer and touches no model; vlm/visual.py runs the layers so. The number of tokens stays, but
for the layer before which visual tokens are gone. "Visual tokens" are those with a cell on an image's grid: row ends
and other marks are text.

Shapes: B rows, T tokens, N visual tokens, E width of the encoder, C width of the language model.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from gnomon.vlm.layout import TokenLayout
from gnomon.vlm.part import Part
from gnomon.vlm.plan import ReductionPlan
from gnomon.vlm.reduction.base import ReduceContext, Stage, TokenReducer


@dataclass(frozen=True)
class LayerCompute:
    """One layer's share of the work; by default all of it.

    attend  whether visual tokens ask; if not, they are only keys and values for the text
    blind   heads in which visual values are nought and visual tokens get no output; the softmax still counts their keys
    ffn     share of the feed-forward neurons, the first ones, that visual tokens pass; with 0 they pass by
    """

    attend: bool = True
    blind: tuple[int, ...] = ()
    ffn: float = 1.0


class VisualCompute(Part):
    """Constructor arguments are the options; a policy with weights of its own is an nn.Module besides.

    leaves  the layer before which visual tokens leave; None: they stay to the end
    reads   whether `feed` wants the encoder's features
    """

    leaves: int | None = None
    reads: bool = False

    def setup(self, *, vision: int, width: int, depth: int) -> None:
        """Make what depends on the widths of encoder and language model and on the number of its layers; check them."""

    def layer(self, index: int) -> LayerCompute:
        return LayerCompute()

    def pairs(self, layout: TokenLayout) -> Tensor | None:
        """(B,T,T) bool: which visual tokens (columns) a visual token (row) may look at; None: those before it."""
        return None

    def feed(self, index: int, features: Tensor) -> Tensor | None:
        """(B,N,C) what visual tokens are in layer `index`, of features (B,N,E); None: what the layer before left."""
        return None


class Leave(TokenReducer):
    """All visual tokens leave before one layer: the plan that keeps none."""

    stage = Stage.LLM_LAYER
    position = "keep"

    def __init__(self, layer: int) -> None:
        super().__init__()
        self.layers = (layer,)

    def idle(self) -> bool:
        return False

    def plan(self, ctx: ReduceContext) -> ReductionPlan:
        return ReductionPlan.keep(ctx.visual[:, :0])


def first_layer(policy: VisualCompute, name: str, value: int, depth: int) -> None:
    """An option that names a layer; the number of layers itself means none of them."""
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= depth:
        raise ValueError(
            f"{type(policy).__name__}: {name} {value!r} is not a layer, 0 to {depth} (the number of layers); correct it"
        )
