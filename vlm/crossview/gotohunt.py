"""Good Token Hunting: all tokens ask, but only few tokens of few views that differ most are asked.

Paper:   Good Token Hunting: A Hitchhiker's Guide to Token Selection for Visual Geometry Transformers. arXiv:2605.23892
Rule:    layers below `local` attend within each view. Above, keys and values are those of `views` views, found by
         farthest-point sampling from the first view on, where the distance of two is the largest similarity of any two
         minus theirs; layers below `sample` take of their patches every `stride`-th row and column, and all special
         tokens
Where:   attention across views; no training; the defaults are for 24 layers
Differs: views are compared by the cosine of their mean patch as it was embedded, not by MegaLoc's descriptor; special
         tokens stay where patches are strided (the release's option ds_keep_register, off by default: there the grid
         begins at the camera token)
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from gnomon.vlm.multiview.cross import CrossView, ViewLayout


class GoodTokenHunting(CrossView):
    """own: views that were not chosen see themselves too, in place of the one chosen last.

    With views for all there are, stride 1 and local 0 it is the dense one.
    """

    def __init__(self, views: int = 25, *, stride: int = 3, local: int = 2, sample: int = 9, own: bool = False) -> None:
        for name, value in (("views", views), ("stride", stride)):
            if value < 1:
                raise ValueError(f"GoodTokenHunting has {name} {value}; give 1 or more")
        self.views, self.stride, self.local, self.sample, self.own = views, stride, local, sample, own

    def begin(self, patches: Tensor, layout: ViewLayout, memory: Any = None) -> Tensor | None:
        """The views whose keys are asked, (B,1,K), or with `own` for each view, (B,S,K); None: all of them."""
        super().begin(patches, layout, memory)
        if self.views >= layout.views:
            return None
        picks = spread(F.normalize(patches.mean(2).float(), dim=-1), layout.valid, self.views)[:, None]
        if self.own:
            view = torch.arange(layout.views, device=picks.device)[:, None]
            picks = picks.repeat(1, layout.views, 1)
            last = torch.where((picks == view).any(-1, keepdim=True), picks[..., -1:], view)
            picks = torch.cat([picks[..., :-1], last], dim=-1)
        return picks.sort(-1)[0]

    def attend(
        self, x: Tensor, q: Tensor, k: Tensor, v: Tensor, *, layer: int, layout: ViewLayout, memory: Tensor | None
    ) -> Tensor:
        if layer < self.local:
            # (B,S,H,T,D)
            alone = (part.unflatten(2, (layout.views, layout.length)).transpose(1, 2) for part in (q, k, v))
            return F.scaled_dot_product_attention(*alone).transpose(1, 2).flatten(2, 3)
        cells = self._cells(layout, strided=layer < self.sample)
        if memory is None and len(cells) == layout.length:
            return super().attend(x, q, k, v, layer=layer, layout=layout, memory=None)
        if memory is None:
            memory = torch.arange(layout.views, device=q.device).expand(len(q), 1, -1)
        there = layout.valid | ~layout.valid.any(1, keepdim=True)
        outputs = []
        for part, picks in zip(q.chunk(memory.shape[1], dim=2), memory.unbind(1)):
            # (B,K*cells): which tokens are asked
            asked = (picks[..., None] * layout.length + cells).flatten(1)
            keys, values = (torch.stack([row[:, i] for row, i in zip(kv, asked)]) for kv in (k, v))
            mask = there.gather(1, picks).repeat_interleave(len(cells), dim=1)[:, None, None]
            outputs.append(F.scaled_dot_product_attention(part, keys, values, attn_mask=None if mask.all() else mask))
        return torch.cat(outputs, dim=2)

    def _cells(self, layout: ViewLayout, *, strided: bool) -> Tensor:
        """The tokens of a view that can be asked."""
        every = torch.arange(layout.length, device=layout.valid.device)
        if not strided:
            return every
        special, patches = every[: layout.special], every[layout.special :].view(layout.grid)
        return torch.cat([special, patches[:: self.stride, :: self.stride].flatten()])


def spread(units: Tensor, valid: Tensor, count: int) -> Tensor:
    """(B,count) of views (B,S,C) of length 1: from the first on, each time the one farthest from all before it, the
    earlier one of equals; where a scene has fewer, views that are not there come last.
    """
    there = valid[:, :, None] & valid[:, None]
    alike = (units @ units.mT).masked_fill(~there, -torch.inf)
    away = (alike.amax((1, 2), keepdim=True) - alike).masked_fill(~there, torch.inf)
    least = torch.full(valid.shape, torch.inf, device=valid.device).masked_fill(~valid, -1)
    picks = []
    for _ in range(count):
        picks.append(least.argmax(1, keepdim=True))
        least = torch.minimum(least, away.gather(1, picks[-1][..., None].expand(-1, -1, len(valid[0])))[:, 0])
        least = least.scatter(1, picks[-1], -2)
    return torch.cat(picks, dim=1)
