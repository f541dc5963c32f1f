"""FastVGGT: most tokens are merged into similar ones before they look across views, and parted again behind it.

Paper:   FastVGGT: Training-Free Acceleration of Visual Geometry Transformer. arXiv:2509.02560
Rule:    destinations are all tokens of the first view, the special tokens of every view and one patch, drawn at random,
         of each 2x2 cells; the others are sources. The ratio * N sources most similar (cosine) to a destination join
         it: queries, keys and values, positions in them, become the mean of a destination and its sources, which get
         its output. floor(protect * N) tokens at equal steps are never merged and stand once more on their own
Where:   attention across views, from layer `first` on; no training
Differs: similarities in the dtype of the model, not bfloat16; grids with an odd side leave their last row or column
         without destinations (the release shifts its cells there); draws are the same on every device; where there is
         nothing to merge, attention is exact
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from gnomon.vlm.crossview.base import SceneByScene
from gnomon.vlm.multiview.cross import CrossView, ViewLayout

_ROWS = 4096
"""Sources that are compared with all destinations at a time."""


class FastVGGT(SceneByScene):
    """ratio: of all tokens, how many are merged away, as far as there are sources. 0: none, which is the dense one."""

    def __init__(self, ratio: float = 0.9, *, first: int = 0, protect: float = 0.1, seed: int = 33) -> None:
        for name, share in (("ratio", ratio), ("protect", protect)):
            if not 0 <= share <= 1:
                raise ValueError(f"FastVGGT has {name} {share}, a share of all tokens; give a number from 0 to 1")
        self.ratio, self.first, self.protect, self.seed = ratio, first, protect, seed

    def attend(
        self, x: Tensor, q: Tensor, k: Tensor, v: Tensor, *, layer: int, layout: ViewLayout, memory: Any
    ) -> Tensor:
        if layer < self.first or not self.ratio:
            return CrossView.attend(self, x, q, k, v, layer=layer, layout=layout, memory=memory)
        return super().attend(x, q, k, v, layer=layer, layout=layout, memory=memory)

    def scene(
        self, x: Tensor, q: Tensor, k: Tensor, v: Tensor, *, layer: int, layout: ViewLayout, memory: Any
    ) -> Tensor:
        with torch.no_grad():
            tokens, joins, place = self.plan(x[0], layout)
        if not len(joins):
            return F.scaled_dot_product_attention(q, k, v)
        count = len(tokens) - len(joins)
        # hundreds of tokens may join one: a sum of so many stands still in half precision
        every = torch.stack([q, k, v])[..., tokens, :].to(torch.promote_types(q.dtype, torch.float32))
        sums = every[..., :count, :].index_add(-2, joins, every[..., count:, :])
        members = 1 + torch.bincount(joins, minlength=count)
        return F.scaled_dot_product_attention(*(sums / members[:, None]).to(q.dtype))[:, :, place]

    def plan(self, x: Tensor, layout: ViewLayout) -> tuple[Tensor, Tensor, Tensor]:
        """Of tokens (N,C): which of them become the merged ones and, behind these, which join one; the one that each
        of the latter joins; and in which merged one each of the N tokens finds its output.
        """
        target, every = self._destinations(layout), torch.arange(len(x), device=x.device)
        sources, targets = every[~target], every[target]
        steps = int(len(x) * self.protect)
        protected = every[:: len(x) // max(1, steps)][:steps]
        unit = F.normalize(x, dim=-1)
        goals = unit[targets].T
        found = [(part @ goals).max(1) for part in unit[sources].split(_ROWS)]
        likeness, nearest = (torch.cat(parts) for parts in zip(*found))
        order = likeness.argsort(descending=True, stable=True)
        order = order[~torch.isin(sources[order], protected)]
        merges = int(len(x) * self.ratio)
        merged, kept = order[:merges], order[merges:]
        alone = torch.cat([sources[kept], targets])
        joins = len(kept) + nearest[merged]
        place = torch.empty_like(every)
        place[alone], place[sources[merged]] = every[: len(alone)], joins
        # last: of a destination that is protected, the copy on its own counts
        place[protected] = len(alone) + every[:steps]
        return torch.cat([alone, protected, sources[merged]]), joins, place

    def _destinations(self, layout: ViewLayout) -> Tensor:
        """(S*T) bool."""
        (h, w), special = layout.grid, layout.special
        rows, columns = h // 2, w // 2
        draw = torch.Generator().manual_seed(self.seed)
        # 0 to 3: two times the row in the cell plus the column
        drawn = torch.randint(4, (layout.views - 1, rows, columns), generator=draw)
        cells = F.one_hot(drawn, 4).bool().unflatten(-1, (2, 2)).transpose(2, 3).flatten(3).flatten(1, 2)
        target = torch.ones(layout.views, layout.length, dtype=torch.bool)
        target[1:, special:] = F.pad(cells, (0, w - 2 * columns, 0, h - 2 * rows)).flatten(1)
        return target.flatten().to(layout.valid.device)
