"""YOPO: visual tokens see their neighbours only, in some heads, through a part of each FFN, in the first layers.

Paper:   Treat Visual Tokens as Text? But Your MLLM Only Needs Fewer Efforts to See. arXiv:2410.06169
Rule:    visual i sees visual j of its image iff |row_i - row_j| and |column_i - column_j| <= (window - 1) / 2, before
         or behind it; in inactive heads visual values and outputs of visual queries are 0 (behind the softmax, which is
         not normalised anew); visual tokens pass the first `ffn` of the FFN's neurons; before layer `cut` they leave
Where:   every decoder layer, in the prefill; inactive heads while decoding, too
Differs: visual rows really leave at the cut; the neurons that they do not pass and their attention in inactive heads
         are not computed; the window is a mask alone and saves nothing. The released code cuts by setting columns to 0
         behind the softmax; leaving is its training-free variant, with -inf before the softmax
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gnomon.vlm.compute.base import LayerCompute, VisualCompute, first_layer
from gnomon.vlm.layout import TokenLayout


class YOPO(VisualCompute):
    """window: side of the neighbourhood, an odd number of cells; None: all visual tokens before, as ever.

    causal: of the neighbours only those before.
    inactive: one list of heads per layer, as `inactive_heads` finds them; empty: all heads are active.
    ffn: share of the neurons; the paper's mlp_ratio 2 is 0.5.
    cut: the layer before which visual tokens leave; None, or the number of layers: never.
    """

    def __init__(
        self,
        window: int | None = 5,
        *,
        causal: bool = False,
        inactive: Sequence[Sequence[int]] = (),
        ffn: float = 1.0,
        cut: int | None = None,
    ) -> None:
        if window is not None and (window < 1 or window % 2 == 0):
            raise ValueError(f"YOPO: window {window} has no middle cell; use an odd number, such as 5")
        if not 0 <= ffn <= 1:
            raise ValueError(f"YOPO: ffn {ffn} is not in [0, 1]; give the share of neurons that visual tokens pass")
        self.window, self.causal, self.ffn, self.cut = window, causal, ffn, cut
        self.inactive = [tuple(heads) for heads in inactive]

    def setup(self, *, vision: int, width: int, depth: int) -> None:
        if self.inactive and len(self.inactive) != depth:
            raise ValueError(
                f"YOPO: inactive has {len(self.inactive)} lists of heads for {depth} layers; give one each"
            )
        if self.cut is not None:
            first_layer(self, "cut", self.cut, depth)
        self.leaves = None if self.cut == depth else self.cut

    def layer(self, index: int) -> LayerCompute:
        return LayerCompute(blind=self.inactive[index] if self.inactive else (), ffn=self.ffn)

    def pairs(self, layout: TokenLayout) -> Tensor | None:
        if self.window is None:
            return None
        away = (layout.cell[:, :, None] - layout.cell[:, None]).abs().amax(-1)
        near = (away <= self.window // 2) & (layout.image[:, :, None] == layout.image[:, None])
        return near.tril() if self.causal else near


def inactive_heads(visual: Tensor, other: Tensor, *, threshold: float, share: float = 0.4) -> list[list[int]]:
    """The heads of each layer that look at images in too few samples; those of layers 0 and 1 all count as active.

    visual and other (samples, layers, heads): attention on visual tokens and on all others, summed over the queries,
    such as vlm/scores.py `masses` yields. A head looks at a sample's image if visual / other > threshold; it is active
    if it does in more than `share` of the samples.
    """
    active = (visual / other.clamp(min=1e-12) > threshold).float().mean(0) > share
    active[:2] = True
    return [torch.nonzero(~heads)[:, 0].tolist() for heads in active]
