"""LayerReduction: the reducers that act between decoder layers, during one prefill.

Shapes: B rows, T positions, G groups, N visual tokens of a group, S positions of its row, R asking rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.profiler import record_function

from gnomon.vlm.decoder import Span
from gnomon.vlm.executor import CHOOSING, policy, sample_numbers
from gnomon.vlm.layout import IGNORE, Kind, TokenLayout
from gnomon.vlm.plan import ReductionPlan
from gnomon.vlm.reduction.base import ReduceContext, TokenReducer
from gnomon.vlm.rewrite import Placed, Rewrite, rewrite
from gnomon.vlm.scores import Projected, rows

_ATTENTION = frozenset({"rows", "head_rows", "received"})
_PROJECTED = _ATTENTION | {"lm_keys"}


class Probe(Protocol):
    """How to look at a decoder's layers; hf.py has one. windows: of each layer, None for full attention."""

    windows: Sequence[int | None]

    def recording(self, index: int) -> AbstractContextManager[list[Projected]]:
        """While layer `index` runs: its queries and keys, in the list once it has run."""

    def project(self, index: int, hidden: Tensor, inputs: dict[str, Any]) -> Projected:
        """Queries and keys of a layer that is not run."""

    def normed(self, hidden: Tensor) -> Tensor:
        """Hidden states after the final norm."""


class LayerReduction:
    """The reducers that act between decoder layers, during one prefill.

    samples: their ids, row by row (packed: document by document).
    labels: (B,T) in training; what an answer says must not decide what is left to answer from.
    """

    def __init__(
        self,
        reducers: Sequence[TokenReducer],
        *,
        samples: Sequence[str],
        probe: Probe,
        depth: int,
        labels: Tensor | None = None,
    ) -> None:
        self.reducers, self.samples, self.probe, self.labels = list(reducers), samples, probe, labels
        self.rewrites: list[Rewrite] = []
        for reducer in self.reducers:
            if max(reducer.layers) >= depth:
                raise ValueError(
                    f"{type(reducer).__name__} acts before layer {max(reducer.layers)}, but the language model has "
                    f"{depth} layers, 0 to {depth - 1}; choose other layers"
                )
        layers = [layer for reducer in self.reducers for layer in reducer.layers]
        if len(set(layers)) < len(layers):
            raise ValueError(f"reducers act before layers {sorted(layers)}: two at one layer; give one of them another")

    def begin(self, hidden: Tensor, layout: TokenLayout) -> None:
        """What the first layer gets."""
        self._hidden, self._layout, self._labels = hidden.detach(), layout, self.labels
        self._full = torch.bincount(_group_ids(layout), minlength=int(sample_numbers(layout).max()) + 1)

    def record(self, index: int) -> AbstractContextManager[list[Projected]] | None:
        """How to run layer `index`, when a reducer behind it wants to know its attention."""
        wanted = any(index + 1 in r.layers and r.score == "previous" and r.needs & _PROJECTED for r in self.reducers)
        return self.probe.recording(index) if wanted else None

    def apply(
        self,
        index: int,
        hidden: Tensor,
        layout: TokenLayout,
        seen: list[Projected],
        inputs: Callable[[], dict[str, Any]],
    ) -> tuple[Tensor, TokenLayout] | None:
        """The sequence that layer `index` gets; None: as it is. seen: of the layer before. inputs: of this layer."""
        for reducer in self.reducers:
            if index not in reducer.layers:
                continue
            with record_function(CHOOSING):
                chosen = self.choose(reducer, index, hidden, layout, seen, inputs)
            if not chosen:
                return None
            placed = [Placed(slots, plan) for slots, _, plan in chosen]
            tokens = [plan.apply(feats).flatten(0, 1) for _, feats, plan in chosen]
            new = rewrite(layout, placed, policy(reducer, layout, inside=True))
            self.rewrites.append(new)
            if self.labels is not None:
                self.labels = new.carry(self.labels, IGNORE)
            return new.fill(hidden, torch.cat(tokens)), new.layout
        return None

    def choose(
        self,
        reducer: TokenReducer,
        index: int,
        hidden: Tensor,
        layout: TokenLayout,
        seen: list[Projected],
        inputs: Callable[[], dict[str, Any]],
    ) -> list[tuple[Tensor, Tensor, ReductionPlan]]:
        """Scores and plans: for groups of equal size their flat positions, their tokens and what becomes of them."""
        chosen = []
        for ids, slots in _buckets(layout, self._full):
            if not chosen and reducer.needs & _PROJECTED and (reducer.score == "own" or not seen):
                seen = [self.probe.project(index, hidden, inputs())]
            ctx = self._context(reducer, index, hidden, layout, ids, slots, seen, inputs)
            chosen.append((slots, ctx.feats, reducer.plan(ctx)))
        return chosen

    def carry(self, tensor: Tensor, pad: int | float | bool) -> Tensor:
        """A side tensor of the first layer's sequence, as the last layer's has it."""
        for step in self.rewrites:
            tensor = step.carry(tensor, pad)
        return tensor

    def _context(
        self,
        reducer: TokenReducer,
        index: int,
        hidden: Tensor,
        layout: TokenLayout,
        ids: Tensor,
        slots: Tensor,
        seen: list[Projected],
        inputs: Callable[[], dict[str, Any]],
    ) -> ReduceContext:
        length, needs = layout.shape[1], reducer.needs
        row = slots[:, 0] // length
        text_at = _positions(layout, ids, _asked(layout, self.labels))
        ctx = ReduceContext(
            feats=hidden.flatten(0, 1)[slots],
            names=[self.samples[i] if i < len(self.samples) else str(i) for i in ids.tolist()],
            cell=layout.cell.flatten(0, 1)[slots],
            image=layout.image.flatten()[slots],
            layer=index,
            step=reducer.layers.index(index),
            full=int(self._full[ids[0]]),
            visual=slots % length,
            text_at=text_at,
        )
        if "text" in needs:
            start = _positions(self._layout, ids, _asked(self._layout, self._labels))
            row_then = _rows_of(self._layout, ids)
            ctx.text = self._hidden[row_then[:, None], start.clamp(min=0)] * (start >= 0)[..., None]
        if "first" in needs:
            at = _positions(self._layout, ids, self._layout.is_cell)
            ctx.first = self._hidden[_rows_of(self._layout, ids)[:, None], at]
        if "normed" in needs:
            ctx.normed = self.probe.normed(hidden.detach()[row])
        if "rotary" in needs:
            ctx.rotary = torch.cat(inputs()["position_embeddings"], -1)[row]
        if "lm_keys" in needs:
            ctx.lm_keys = seen[0].keys[row].transpose(1, 2).flatten(2)
        if not needs & _ATTENTION:
            return ctx
        window = self.probe.windows[index if reducer.score == "own" else index - 1]
        part = Projected(seen[0].queries[row], seen[0].keys[row], seen[0].scale, seen[0].softcap)
        if needs & {"rows", "head_rows"}:
            ctx.asking = self._asking(reducer, ctx, layout, ids)
            found = rows(part, ctx.asking.clamp(min=0), _sight(layout, row, ctx.asking, window))
            found = found.gather(3, ctx.visual[:, None, None].expand(*found.shape[:3], -1))
            ctx.head_rows = found if "head_rows" in needs else None
            ctx.rows = found.mean(1)
        if "received" in needs:
            every = _positions(layout, ids, layout.visible)
            # in chunks of rows: the whole matrix is never there
            sums = [
                rows(part, at.clamp(min=0), _sight(layout, row, at, window)).mean(1).sum(1)
                for at in every.split(256, 1)
            ]
            ctx.received = torch.stack(sums).sum(0).gather(1, ctx.visual)
        return ctx

    def _asking(self, reducer: TokenReducer, ctx: ReduceContext, layout: TokenLayout, ids: Tensor) -> Tensor:
        """(G,R) the rows that the reducer asks with; where it names none, those right before answers, or the last."""
        last = _last(layout, ids)[:, None]
        asking = reducer.queries(ctx)
        if asking is None and self.labels is not None:
            asking = _positions(layout, ids, _before_answers(layout, self.labels))
        if asking is None or asking.shape[1] == 0:
            return last
        none = (asking < 0).all(1, keepdim=True)
        return torch.cat([torch.where(none, last, asking[:, :1]), asking[:, 1:]], 1)


def _asked(layout: TokenLayout, labels: Tensor | None) -> Tensor:
    """(B,T) text that is given and not to be answered."""
    text = layout.kind == Kind.TEXT
    return text if labels is None else text & (labels == IGNORE)


def _before_answers(layout: TokenLayout, labels: Tensor) -> Tensor:
    """(B,T) the tokens that are followed by the first one of an answer."""
    sample, given = sample_numbers(layout), labels == IGNORE
    begins = given[:, :-1] & ~given[:, 1:] & layout.visible[:, :-1] & (sample[:, 1:] == sample[:, :-1])
    return F.pad(begins, (0, 1))


def _group_ids(layout: TokenLayout) -> Tensor:
    return sample_numbers(layout)[layout.is_cell]


def _buckets(layout: TokenLayout, full: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Groups with as many tokens now and at first: their samples' numbers (G,) and their flat positions (G,N)."""
    flat = layout.is_cell.flatten().nonzero()[:, 0]
    ids, counts = torch.unique_consecutive(_group_ids(layout), return_counts=True)
    kinds: dict[tuple[int, int], list[int]] = {}
    for k, kind in enumerate(zip(counts.tolist(), full[ids].tolist())):
        kinds.setdefault(kind, []).append(k)
    begin = counts.cumsum(0) - counts
    return [
        (ids[members], flat[begin[members][:, None] + torch.arange(count, device=flat.device)])
        for (count, _), members in kinds.items()
    ]


def _positions(layout: TokenLayout, ids: Tensor, wanted: Tensor) -> Tensor:
    """(G,Q) where in its row each sample's wanted tokens stand, -1 after the last."""
    mine = (sample_numbers(layout)[_rows_of(layout, ids)] == ids[:, None]) & wanted[_rows_of(layout, ids)]
    order = torch.argsort(~mine, dim=1, stable=True)[:, : int(mine.sum(1).max())]
    return order.masked_fill(~mine.gather(1, order), -1)


def _rows_of(layout: TokenLayout, ids: Tensor) -> Tensor:
    """(G,) the row of the batch that each sample is in."""
    if layout.document is None:
        return ids
    sample = sample_numbers(layout)
    row = torch.zeros(int(sample.max()) + 1, dtype=torch.long, device=ids.device)
    rows_ = torch.arange(len(sample), device=ids.device)[:, None].expand(layout.shape)
    row[sample[layout.visible]] = rows_[layout.visible]
    return row[ids]


def _last(layout: TokenLayout, ids: Tensor) -> Tensor:
    """(G,) the last real position of each sample."""
    rows_ = _rows_of(layout, ids)
    mine = (sample_numbers(layout)[rows_] == ids[:, None]) & layout.visible[rows_]
    return (mine * torch.arange(1, mine.shape[1] + 1, device=ids.device)).argmax(1)


def _sight(layout: TokenLayout, row: Tensor, asking: Tensor, window: int | None) -> Tensor:
    """(G,R,S) what the asking rows see: what is before them, visible, of their own document, inside the window."""
    span = Span.of(layout)
    index = torch.arange(layout.shape[1], device=row.device)
    mask = (index <= asking[..., None]) & span.visible[row][:, None]
    if span.document is not None:
        own = span.document[row].gather(1, asking.clamp(min=0))
        mask &= span.document[row][:, None] == own[..., None]
    if window is not None:
        position = span.position[row]
        mask &= position.gather(1, asking.clamp(min=0))[..., None] - position[:, None] < window
    return mask & (asking >= 0)[..., None]
