"""Operators of kernels/ in place of softmax attention, in layers that keep their own projections: no parameters.

In a decoder they see what causal order lets them see, on tokens that know their image and their cell: a pattern on a
grid holds inside of images, all other pairs are causal. In an encoder everything is visible: class and register tokens,
and a grid of cells behind them.

Shapes: B rows, T tokens, H heads, D head width.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from math import prod
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from gnomon.kernels.mask import CAUSAL, EVERYTHING, Bound, Expr
from gnomon.kernels.masks.atoms import visual
from gnomon.kernels.masks.keeping import remembered
from gnomon.kernels.masks.tokens import Tokens
from gnomon.kernels.members import FAMILIES
from gnomon.vlm.decoder import LayerCache, LayerRun, Span, View
from gnomon.vlm.layout import extents
from gnomon.vlm.placement import Layers, chosen

Attending = Callable[[nn.Module, Callable[..., tuple[Tensor, None]]], AbstractContextManager[None]]
"""While it lasts, a layer's attention goes through the given function."""

_GIVEN = {"mask", "scale", "state", "cu_seqlens", "grid", "prefix", "q", "k", "v"}
"""What the place that an operator is put into knows."""


@dataclass(frozen=True, eq=False)
class Operator:
    """One operator and the layers that it acts in.

    name     of its file in kernels/softmax, kernels/sparse or, in encoders, kernels/linear
    options  its own, as its function takes them
    layers   see placement.py
    images   "causal", or "both": cells of one image see those behind them, too
    """

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)
    layers: Layers = "all"
    images: str = "causal"

    def __post_init__(self) -> None:
        if self.images not in ("causal", "both"):
            raise ValueError(f"operator {self.name!r}: images {self.images!r} is unknown; use causal or both")
        known = inspect.signature(self.function).parameters
        wrong = [name for name in self.options if name not in set(known) - _GIVEN]
        needed = [name for name, p in known.items() if p.default is p.empty and name not in {*_GIVEN, *self.options}]
        if wrong or needed:
            what = f"has no option {wrong[0]!r}" if wrong else f"needs {', '.join(needed)}"
            usable = ", ".join(name for name in known if name not in _GIVEN) or "none"
            raise ValueError(f"operator {self.name!r} {what}; its options are: {usable}. Tensors come with a mixer")
        for name, value in self.options.items():
            if str(known[name].annotation).split(" |")[0] == "Tensor" and not isinstance(value, Tensor | None):
                raise ValueError(
                    f"operator {self.name!r}: {name} is a tensor, not {value!r}; tensors come with a mixer"
                )

    @property
    def module(self) -> ModuleType:
        family = _families().get(self.name)
        if family is None:
            raise ValueError(f"operator {self.name!r} does not exist; use one of {', '.join(_families())}")
        return importlib.import_module(f"gnomon.kernels.{family}.{self.name}")

    @property
    def function(self) -> Callable[..., tuple[Tensor, Any]]:
        return getattr(self.module, self.name)

    @property
    def on_grid(self) -> bool:
        return "grid" in inspect.signature(self.function).parameters

    @property
    def only_training(self) -> bool:
        """A pattern that a model is trained with, and read with softmax attention."""
        return getattr(self.module, "ONLY_TRAINING", False)

    def everything(
        self, q: Tensor, k: Tensor, v: Tensor, *, scale: float, grid: tuple[int, ...], prefix: int
    ) -> Tensor:
        """(B,T,H,D) of an encoder: `prefix` class or register tokens, then a grid in raster order.

        Operators without a grid take the prefix for tokens like others. Of the rest some have an option for it, and
        patterns hold between cells only: the prefix sees and is seen by everything.
        """
        known = inspect.signature(self.function).parameters
        options = {**self.options, "scale": scale}
        if not self.on_grid:
            return self.function(q, k, v, **options)[0]
        cells = prod(grid)
        if prefix < 0 or prefix + cells != q.shape[1]:
            what = f"grid {tuple(grid)} has {cells} cells, the sequence {q.shape[1]} tokens, {max(prefix, 0)} before it"
            raise ValueError(f"operator {self.name!r}: {what}; give the grid of these images")
        if "prefix" in known:
            return self.function(q, k, v, grid=grid, prefix=prefix, **options)[0]
        if not prefix:
            return self.function(q, k, v, grid=grid, **options)[0]
        if not hasattr(self.module, "rule"):
            raise ValueError(
                f"operator {self.name!r} wants a pure grid, not {prefix} tokens before it; use another one"
            )
        mask = _behind(self, tuple(grid), prefix, q.shape[2], q.device)
        return self.module.OP.run(self.options.get("impl", "auto"), q, k, v, mask=mask, scale=scale)[0]

    def causal(self, q: Tensor, k: Tensor, v: Tensor, *, bound: Bound, scale: float) -> Tensor:
        """(B,T,H,D) of a decoder; `bound`: what `lay` made of its tokens."""
        if hasattr(self.module, "rule"):
            return self.module.OP.run(self.options.get("impl", "auto"), q, k, v, mask=bound, scale=scale)[0]
        return self.function(q, k, v, mask=bound, scale=scale, **self.options)[0]

    def lay(self, queries: Tokens, keys: Tokens, heads: int) -> Bound:
        """The rule of a decoder's layer on its tokens."""
        if not hasattr(self.module, "rule"):
            return CAUSAL.on(queries, None if queries is keys else keys)
        rule = self.rule(keys, heads)
        if self.module.OP.grid:
            inside = rule if self.images == "both" else rule & CAUSAL
            across = rule & CAUSAL if getattr(self.module, "ACROSS_IMAGES", False) else None
            whole = visual(inside, CAUSAL, across=across)
        else:
            whole = rule & CAUSAL
        return whole.on(queries, None if queries is keys else keys)

    def rule(self, tokens: Tokens, heads: int) -> Expr:
        """The operator's own rule; what of it depends on the tokens is read from them."""
        known = inspect.signature(self.module.rule).parameters
        if other := set(self.options) - {*known, "impl"}:
            raise ValueError(
                f"operator {self.name!r} with {', '.join(sorted(other))}, which is not for here; leave it out"
            )
        facts: dict[str, Any] = {name: p.default for name, p in inspect.signature(self.function).parameters.items()}
        facts |= {"grid": None, "heads": heads}
        if "frames" in known:
            if "t" not in tokens.fields:
                raise ValueError(f"operator {self.name!r} wants frames; give a grid of three extents, (t, y, x)")
            size = int((tokens["extent_y"] * tokens["extent_x"]).max())
            facts |= {"frames": max(1, int(tokens["t"].max()) + 1), "size": size}
        given = {name: value for name, value in {**facts, **self.options}.items() if name in known}
        return self.module.rule(**given)


# kept: what a mask is lowered to is kept with it, and every image of one size asks for the same
@remembered
def _behind(operator: Operator, grid: tuple[int, ...], prefix: int, heads: int, device: torch.device) -> Bound:
    """An encoder's pattern on a grid behind tokens that see and are seen by everything."""
    cells = Tokens.grid(*grid, device=device)
    cells = cells.having(place=cells["p"] % prod(grid[-2:]))
    tokens = Tokens.join([Tokens.line(prefix, device=device), cells])
    return visual(operator.rule(tokens, heads), EVERYTHING).on(tokens)


def made(options: Mapping[str, Any]) -> Operator:
    """From plain types."""
    try:
        return Operator(**options)
    except TypeError as error:
        raise ValueError(f"operator {dict(options)}: {error}; it takes name, options, layers and images") from error


def operated(
    given: Sequence[Mapping[str, Any]], layers: Sequence[nn.Module], windows: Sequence[int | None], attending: Attending
) -> dict[int, Operated]:
    """Which operator each layer of a decoder has; a ValueError for what cannot act there."""
    found: dict[int, Operated] = {}
    for options in given:
        operator = made(options)
        check_causal(operator)
        for index in chosen(operator.layers, len(layers), what=f"operator {operator.name!r}"):
            if index in found:
                raise ValueError(f"two operators, {operator.name!r} the second, are for layer {index}; give it one")
            config = layers[index].self_attn.config
            in_the_way = {
                "a sliding window": windows[index],
                "capped logits": getattr(config, "attn_logit_softcapping", None),
                "dropout of its attention": getattr(config, "attention_dropout", None),
            }
            for what, value in in_the_way.items():
                if value:
                    raise ValueError(
                        f"operator {operator.name!r}: layer {index} has {what} ({value}); use another model"
                    )
            found[index] = Operated(operator, config.num_attention_heads, attending)
    return found


def check_causal(operator: Operator) -> None:
    """A ValueError for an operator that is not for decoders."""
    op = operator.module.OP
    if "CS" not in op.patterns or (op.state is not None):
        raise ValueError(f"operator {operator.name!r} is not causal, or keeps a state; use another one, or a mixer")
    rule = getattr(operator.module, "rule", None)
    if rule is None and operator.on_grid:
        raise ValueError(
            f"operator {operator.name!r} is on a grid and has no rule for the text beside it (a function `rule` in its "
            "file); use it in an encoder, or another one"
        )
    given = {name: p.default for name, p in inspect.signature(operator.function).parameters.items()}
    given |= operator.options
    for name, p in {} if rule is None else inspect.signature(rule).parameters.items():
        # where it may be left out, it is made from the length of the sequence, which grows
        if p.default is p.empty and name not in _GIVEN and given.get(name, ...) is None:
            raise ValueError(f"operator {operator.name!r} needs {name} in a decoder; give options: {{{name}: ...}}")


@dataclass(frozen=True, eq=False)
class Operated:
    """What `decode` has to know of a layer whose attention is an operator."""

    operator: Operator
    heads: int
    attending: Attending

    @property
    def only_training(self) -> bool:
        return self.operator.only_training

    def mask(self, view: View, cache: LayerCache | None) -> Bound:
        """The operator's rule on the layer's tokens; made once for all layers that agree."""
        past = None if cache is None else cache.span
        return view.once(lambda: self._mask(view, past), "operator", self.operator, past)

    def _mask(self, view: View, past: Span | None) -> Bound:
        keys = view.once(lambda: tokens_of(view.keys(past)), "tokens", past)
        queries = keys if past is None else keys.take(slice(-view.layout.shape[1], None))
        return self.operator.lay(queries, keys, self.heads)

    def run(self, layer: nn.Module) -> LayerRun:
        return partial(self._run, layer)

    def _run(self, layer: nn.Module, hidden: Tensor, **given: Any) -> Tensor:
        with self.attending(layer, self._attend):
            return layer(hidden, **given)

    def _attend(
        self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Bound, *, scaling: float, **more: Any
    ) -> tuple[Tensor, None]:
        """As transformers calls it: (B,H,T,D) in, (B,T,H,D) out."""
        q, k, v = (x.transpose(1, 2) for x in (query, key, value))
        return self.operator.causal(q, k, v, bound=mask, scale=scaling), None


def tokens_of(span: Span) -> Tokens:
    """The tokens that masks stand on: places count from the beginning of each sample, cells know their image's size."""
    visible = span.visible
    segment = torch.where(visible, 0 if span.document is None else span.document, -1)
    index = torch.arange(visible.shape[1], device=visible.device).expand_as(visible)
    begins = torch.ones_like(visible)
    begins[:, 1:] = segment[:, 1:] != segment[:, :-1]
    p = index - torch.where(begins, index, 0).cummax(1).values
    image, row, column = span.cell.unbind(-1)
    fields = {"p": p, "item": image, "t": image, "y": row, "x": column}
    fields["extent_y"], fields["extent_x"] = extents(image, span.cell[..., 1:], span.extent).unbind(-1)
    fields["place"] = torch.where(image >= 0, row * fields["extent_x"] + column, -1)
    if span.document is not None or not bool(visible.all()):
        fields["segment"] = segment
    return Tokens(fields)


def _families() -> dict[str, str]:
    """The family of each operator, by the name of its file."""
    places = [Path(place) for place in importlib.import_module("gnomon.kernels").__path__]
    return {
        f.stem: family for p in places for family in FAMILIES for f in (p / family).glob("*.py") if f.stem != "base"
    }
