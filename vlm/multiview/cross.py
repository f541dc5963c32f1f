"""CrossView: who attends to whom across views. The one place where geometry transformers can be made cheaper.

Token merging, key selection, windows and caches are subclasses; what they are given is the same in every encoder.

Shapes: B scenes, S views, T tokens per view (special ones, then h*w patches), C width, H heads, D head width.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

from torch import Tensor
from torch.nn import functional as F

from gnomon.vlm.multiview.block import Attend
from gnomon.vlm.part import Part, build


@dataclass(frozen=True)
class ViewLayout:
    """Views one behind the other, each of them `special` tokens and then the patches of a grid, row by row.

    valid (B,S) bool: views that are there
    """

    grid: tuple[int, int]
    special: int
    valid: Tensor

    @property
    def views(self) -> int:
        return self.valid.shape[1]

    @property
    def length(self) -> int:
        """Tokens per view."""
        return self.special + self.grid[0] * self.grid[1]

    @cached_property
    def keys(self) -> Tensor | None:
        """(B,1,1,S*T) bool: tokens that may be attended to; None: all of them."""
        if bool(self.valid.all()):
            return None
        # a scene without any view attends to its padding: softmax over nothing is not a number
        there = self.valid | ~self.valid.any(1, keepdim=True)
        return there.repeat_interleave(self.length, dim=1)[:, None, None]


class CrossView(Part):
    """Every token attends to every token of all views that are there.

    An object has options and no state of its own: what one pass over the layers must remember is its `memory`.
    """

    @classmethod
    def of(cls, given: CrossView | dict[str, Any] | None) -> CrossView:
        """What an encoder's option `cross` means: an object, the spec of one, or None for the dense one."""
        return build(given, cls) if isinstance(given, dict) else given or cls()

    def begin(self, patches: Tensor, layout: ViewLayout, memory: Any = None) -> Any:
        """Before the first layer: patches (B,S,N,C) as they were embedded, and the memory of the pass that this one
        continues, not to be changed. The memory of this pass, which `attend` may change.
        """
        if memory is not None:
            raise ValueError(f"{type(self).__name__} cannot go on from earlier views; give it all views at once")
        return None

    def attend(
        self, x: Tensor, q: Tensor, k: Tensor, v: Tensor, *, layer: int, layout: ViewLayout, memory: Any
    ) -> Tensor:
        """Outputs (B,H,S*T,D) of queries, keys and values (positions are in them), computed from x (B,S*T,C).

        layer counts the layers that look across views, from 0.
        """
        return F.scaled_dot_product_attention(q, k, v, attn_mask=layout.keys)

    def at(self, layer: int, layout: ViewLayout, memory: Any) -> Attend:
        """What a block of this layer is called with."""
        return partial(self.attend, layer=layer, layout=layout, memory=memory)


def among(valid: Tensor) -> Attend:
    """Attention across views of which each is one token: valid (B,S), sequences (B,S,C)."""
    return CrossView().at(0, ViewLayout((0, 0), 1, valid), None)
