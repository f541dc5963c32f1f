"""Our loop over a decoder's own layers: hidden states, rotary tables, mask and cache are handed to each, explicitly.

The layers are Hugging Face's, unmodified; with nothing plugged in the result has the bits of their own forward.
Whatever happens between two layers (tokens leave, states are edited) happens in `decode`, in the open: a layer reads
nothing but what its turn of the loop gives it, and its cache has its own length, positions and documents.

Shapes: B rows, T tokens, S keys (cached and new), C width, H key heads, D head width.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from gnomon.vlm.layout import TokenLayout

if TYPE_CHECKING:
    from gnomon.vlm.layer_reduction import LayerReduction
    from gnomon.vlm.visual import BlindHeads, VisualLayers

LayerRun = Callable[..., Tensor]
"""What is called like a layer: hidden states, and by name all that `decode` gives a layer."""

Made = TypeVar("Made")

Tables = list[tuple[Tensor, Tensor]]
"""The rotary (cos, sin) of every layer; layers of one kind share them."""


@dataclass(frozen=True, eq=False)
class Span:
    """What a mask has to know of tokens in order, (B,T) each. Never changed in place: layers share it.

    cell (B,T,3): image, row and column of a visual token, else -1
    extent (B,T,2): as the layout has it
    """

    visible: Tensor
    position: Tensor
    document: Tensor | None = None
    cell: Tensor | None = None
    extent: Tensor | None = None

    @classmethod
    def of(cls, layout: TokenLayout) -> Span:
        # of three axes the first counts time; windows go by that one
        position = layout.position if layout.position.dim() == 2 else layout.position[0]
        cell = torch.cat([layout.image[..., None], layout.cell], 2).masked_fill(~layout.is_cell[..., None], -1)
        return cls(layout.visible, position, layout.document, cell, layout.extent)

    @property
    def visual(self) -> Tensor:
        return self.cell[..., 0] >= 0

    def join(self, later: Span) -> Span:
        assert (self.document is None) == (later.document is None), "cached and new tokens disagree about documents"
        return Span(
            torch.cat([self.visible, later.visible], 1),
            torch.cat([self.position, later.position], 1),
            None if self.document is None else torch.cat([self.document, later.document], 1),
            None if self.cell is None else torch.cat([self.cell, later.cell], 1),
            None if self.extent is later.extent is None else torch.cat([self._extents(), later._extents()], 1),
        )

    def _extents(self) -> Tensor:
        return self.position.new_full((*self.position.shape, 2), -1) if self.extent is None else self.extent

    def at(self, *index: Tensor | slice) -> Span:
        """Rows, or rows and columns, of it."""
        document = None if self.document is None else self.document[index]
        cell = None if self.cell is None else self.cell[index]
        extent = None if self.extent is None else self.extent[index]
        return Span(self.visible[index], self.position[index], document, cell, extent)


class LayerCache:
    """Keys and values (B,H,S,D) of one layer, and the span of the tokens that they stem from.

    A layer with a window keeps the `window - 1` newest keys: as positions rise, the next token sees no others.
    shift: how far its position ids are behind those of the first layer, where tokens left and the rest was renumbered.
    """

    def __init__(self, window: int | None) -> None:
        self.window = window
        self.span: Span | None = None
        self.keys: Tensor | None = None
        self.values: Tensor | None = None
        self.shift: Tensor | None = None

    @property
    def remembered(self) -> list[Tensor]:
        """All that is kept."""
        return [] if self.keys is None else [self.keys, self.values]

    def update(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Old and new keys and values, for the attention of the new tokens."""
        if self.keys is not None:
            keys, values = torch.cat([self.keys, keys], 2), torch.cat([self.values, values], 2)
        else:
            keys, values = keys.contiguous(), values.contiguous()
        kept = _newest(keys.shape[2], self.window)
        self.keys, self.values = keys[:, :, kept], values[:, :, kept]
        return keys, values

    def saw(self, view: View) -> None:
        """The layer has run on these tokens."""
        self.span = view.kept(self.span, self.window)

    def select(self, rows: Tensor) -> None:
        if self.keys is not None:
            self.keys, self.values = self.keys.index_select(0, rows), self.values.index_select(0, rows)


class MixerCache(LayerCache):
    """What a mixer remembers instead: tensors that begin with the row. It knows no past tokens one by one."""

    def __init__(self) -> None:
        super().__init__(None)
        self.memory: dict[str, Tensor] = {}

    @property
    def remembered(self) -> list[Tensor]:
        return list(self.memory.values())

    def saw(self, view: View) -> None:
        pass

    def select(self, rows: Tensor) -> None:
        self.memory = {name: value.index_select(0, rows) for name, value in self.memory.items()}


class DecodeState:
    """The caches of all layers. A layer's attention calls `update` with its own index, as it would a HF cache.

    mixed: layers with a mixer. visual: how layers go on that computed less for the images of the prefill.
    """

    def __init__(self, windows: Sequence[int | None], mixed: Collection[int] = ()) -> None:
        self.layers = [MixerCache() if i in mixed else LayerCache(window) for i, window in enumerate(windows)]
        self.visual: BlindHeads | None = None

    def update(self, keys: Tensor, values: Tensor, layer_idx: int, cache_kwargs: dict | None = None):
        return self.layers[layer_idx].update(keys, values)

    def select(self, rows: Tensor) -> None:
        """Go on with these rows in this order: beams are reordered and doubled, finished rows leave."""
        # layers that hold the same tokens go on sharing one span
        spans = {cache.span: cache.span.at(rows) for cache in self.layers if cache.span is not None}
        shifts = {cache.shift: cache.shift[..., rows] for cache in self.layers if cache.shift is not None}
        for cache in self.layers:
            if cache.shift is not None:
                cache.shift = shifts[cache.shift]
            if cache.span is not None:
                cache.span = spans[cache.span]
            cache.select(rows)


class Placed(Protocol):
    """What has been put into a layer by its number: an operator or a mixer."""

    def mask(self, view: View, cache: LayerCache | None) -> Any:
        """What the layer hands to its attention, where others get a mask."""

    def run(self, layer: nn.Module) -> LayerRun:
        """The layer with it."""


class Kept:
    """The hidden states (B,T,C) that leave some layers, before the final norm, and the layout of their tokens there."""

    def __init__(self, layers: Collection[int]) -> None:
        self.layers = frozenset(layers)
        self.hidden: dict[int, Tensor] = {}
        self.layout: dict[int, TokenLayout] = {}

    def saw(self, index: int, hidden: Tensor, layout: TokenLayout) -> None:
        if index in self.layers:
            self.hidden[index], self.layout[index] = hidden, layout


class View:
    """The tokens as the layers see them: rotary tables and masks, each made once for all layers that agree on it.

    A loop that changes the tokens between two layers makes a new view for the layers that follow.
    """

    def __init__(self, hidden: Tensor, layout: TokenLayout, rotary: Callable[[Tensor, Tensor], Tables], additive: bool):
        self.layout = layout
        self.queries = Span.of(layout)
        self.tables = rotary(hidden, layout.position)
        self.additive = hidden.dtype if additive else None
        self._made: dict[tuple[object, ...], Any] = {}

    def once(self, make: Callable[[], Made], *key: object) -> Made:
        """What layers that agree on the key share."""
        # layers that hold the same tokens share one span, so its identity tells which layers agree
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]

    def keys(self, past: Span | None) -> Span:
        """Cached and new tokens."""
        return self.queries if past is None else self.once(lambda: past.join(self.queries), "keys", past)

    def kept(self, past: Span | None, window: int | None) -> Span:
        """What the cache keeps of them."""
        keys = self.keys(past)
        return self.once(lambda: keys.at(slice(None), _newest(keys.visible.shape[1], window)), "kept", past, window)

    def mask(self, past: Span | None, window: int | None) -> Tensor | None:
        """The mask over cached and new keys."""

        def make() -> Tensor | None:
            if self.additive is None:
                return attention_mask(self.queries, self.keys(past), window)
            return self.given(attention_mask(self.queries, self.keys(past), window, plain=False))

        return self.once(make, "mask", past, window)

    def given(self, visible: Tensor) -> Tensor:
        """A bool mask as the layers' attention takes it."""
        if self.additive is None:
            return visible
        floor = torch.finfo(self.additive).min
        return torch.where(visible, torch.zeros((), dtype=self.additive, device=visible.device), floor)


def attention_mask(queries: Span, keys: Span, window: int | None, *, plain: bool = True) -> Tensor | None:
    """(B,1,T,S), true where a query may look; the queries are the last T keys.

    None when `plain` and nothing but causal order is asked for: kernels have a fast way for that, and HF does the same.
    """
    count, total = queries.visible.shape[1], keys.visible.shape[1]
    # where tokens left, few keys may still reach far back
    windowed = window is not None and (total >= window or bool((keys.position.amax(1) >= window).any()))
    if plain and keys.document is None and not windowed and count in (1, total) and bool(keys.visible.all()):
        return None
    index = torch.arange(total, device=keys.visible.device)
    own = index[total - count :, None]
    mask = (index <= own) & keys.visible[:, None]
    if windowed:
        mask &= queries.position[:, :, None] - keys.position[:, None] < window
    if keys.document is not None:
        mask &= queries.document[:, :, None] == keys.document[:, None]
    # padding looks at itself: a query that sees nothing at all is NaN in some kernels
    return (mask | (index == own))[:, None]


def decode(
    hidden: Tensor,
    layout: TokenLayout,
    *,
    layers: Sequence[nn.Module],
    windows: Sequence[int | None],
    rotary: Callable[[Tensor, Tensor], Tables],
    state: DecodeState | None = None,
    additive: bool = False,
    checkpointing: bool = False,
    reduction: LayerReduction | None = None,
    visual: VisualLayers | None = None,
    placed: Mapping[int, Placed] | None = None,
    kept: Kept | None = None,
) -> Tensor:
    """(B,T,C) embeddings through all layers, before the final norm.

    windows: sliding window of each layer, None for full attention. rotary: hidden states and positions to tables.
    additive: masks as floats to add (eager attention) and not as bool. reduction: what leaves between layers; only for
    whole sequences, that is in a prefill: later tokens find the caches as it left them. visual: what stands in for
    layers that compute less for visual tokens, likewise. placed: what acts in a layer, by its number. kept: gets the
    hidden states that leave the layers it names.
    """
    placed = placed or {}
    if visual is not None and state is not None:
        state.visual = visual.later()
    work = state.visual if visual is None and state is not None else visual
    views: dict[Tensor | None, View] = {}

    def view(shift: Tensor | None) -> View:
        """The tokens as layers with this shift see them."""
        if shift not in views:
            moved = layout if shift is None else replace(layout, position=layout.position - shift[..., None])
            views[shift] = View(hidden, moved, rotary, additive)
        return views[shift]

    def inputs(index: int) -> dict[str, Any]:
        cache = None if state is None else state.layers[index]
        seen = view(None if cache is None else cache.shift)
        if index in placed:
            mask = placed[index].mask(seen, cache)
        else:
            mask = seen.mask(None if cache is None else cache.span, windows[index])
        return {
            "attention_mask": mask,
            "position_ids": seen.layout.position,
            "position_embeddings": seen.tables[index],
            "past_key_values": state,
        }

    if reduction is not None:
        assert state is None or state.layers[0].span is None, "tokens leave in the prefill, not afterwards"
        reduction.begin(hidden, layout)
    start, recorded, shift = layout, [], None
    for index, (layer, window) in enumerate(zip(layers, windows)):
        if reduction is not None:
            changed = reduction.apply(index, hidden, layout, recorded, partial(inputs, index))
            if changed is not None:
                hidden, layout = changed
                views.clear()
                shift = None if state is None else _shift(start, layout)
        cache = None if state is None else state.layers[index]
        given = inputs(index)
        run: LayerRun = layer if index not in placed else placed[index].run(layer)
        if work is not None:
            seen = view(None if cache is None else cache.shift)
            run = work.stand_in(index, layer, seen, None if cache is None else cache.span, window)
        with (reduction.record(index) if reduction is not None else None) or nullcontext([]) as recorded:
            if checkpointing:
                hidden = checkpoint(run, hidden, use_reentrant=False, **given)
            else:
                hidden = run(hidden, **given)
        # some layers of transformers 4 return a tuple
        hidden = hidden[0] if isinstance(hidden, tuple) else hidden
        if kept is not None:
            kept.saw(index, hidden, layout)
        if cache is not None:
            cache.saw(view(cache.shift))
            if shift is not None:
                cache.shift = shift
    return hidden


def _shift(first: TokenLayout, now: TokenLayout) -> Tensor | None:
    """By how much the next token's position id is smaller; rows end with a real token in a prefill with caches."""
    shift = first.position[..., -1] - now.position[..., -1]
    return shift if bool(shift.any()) else None


def _newest(length: int, window: int | None) -> slice:
    """The keys that the next token can see beside itself."""
    return slice(0 if window is None else max(0, length - window + 1), None)
