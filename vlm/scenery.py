"""Scenery: a geometry encoder and a fusion at work in a model.

In training with gradients all of it runs for every batch, on a blank scene times zero where there is none: ranks that
shard or average parts must run the same ones in the same order.

Shapes: B rows, T tokens, I images, N visual tokens, C width of the language model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from gnomon.vlm.executor import sample_numbers
from gnomon.vlm.fusion.base import Fusion, Scene
from gnomon.vlm.geometry.base import GeometryEncoder
from gnomon.vlm.layout import IGNORE, Batch, Features, ImageSpec, Kind, Views, ViewsSpec
from gnomon.vlm.survey import Survey, survey
from gnomon.vlm.tally import Tally


class Scenery:
    """Sets the fusion up between its neighbours; a ValueError where they do not go together.

    stride, encoder: the vision encoder's, and its width. lm: width of the language model. max_views: of one scene.
    tally: of what the fusion does in training, for whoever wants to know.
    """

    tally: Tally | None = None

    def __init__(
        self,
        geometry: GeometryEncoder,
        fusion: Fusion,
        *,
        image: ImageSpec,
        stride: int,
        encoder: int,
        lm: int,
        max_views: int | None = None,
    ) -> None:
        _check(geometry, fusion, image)
        self.geometry, self.fusion = geometry, fusion
        self.cell = image.cell if fusion.behind else stride
        most = min((limit for limit in (geometry.max_views, max_views) if limit is not None), default=None)
        self.views = ViewsSpec(geometry.multiple, most, fusion.extra, image.size)
        self.seen = encoder
        self._least = image.cell
        width = lm if fusion.behind else encoder
        beside = geometry.width * max(1, len(fusion.layers)) * fusion.frames
        fusion.setup({"vision": width, "geometry": beside, "encoder": encoder, "lm": lm}, width)

    def survey(self, views: Sequence[Views], *, places: bool, touch: bool, device: torch.device) -> Survey | None:
        """places: whether points are wanted beside what the fusion needs. touch: see above."""
        if not views:
            if not touch:
                return None
            views = [Views.blank(*self.views.target(self._least, self._least), device)]
        heads = self.fusion.needs | ({"points"} & self.geometry.heads if places else set())
        return survey(self.geometry, views, layers=self.fusion.layers, frames=self.fusion.frames, heads=heads)

    def fuse(self, features: Features, members: list[int], known: Survey | None, *, touch: bool) -> Features:
        """Images with geometry learn of it; all others keep their tokens bit for bit."""
        if known is None:
            return features
        tokens, told = features.tokens, known.of(members)
        for places, geometry in told:
            parts = self.parts(features.at(places), geometry, known)
            fused = self.fusion(parts).tokens
            # some only add tokens for scenes
            if self.tally is not None and self.fusion.training and fused is not parts["vision"].tokens:
                self.tally.told(parts["vision"], fused, self.fusion.opened)
            tokens = tokens.index_copy(0, places, fused.to(tokens.dtype))
        if not told and touch:
            geometry = known.view(torch.zeros(1, 3, dtype=torch.long, device=tokens.device))
            h, w = (max(1, side * self.geometry.patch // self.cell) for side in geometry.grid[0])
            # with a gradient of its own, so that ZeRO-3's hooks run in backward as they do with geometry
            blank = Features(tokens.new_zeros(1, h * w, tokens.shape[2]) + 0 * tokens.sum(), [(h, w)])
            tokens = tokens + 0 * self.fusion(self.parts(blank, geometry, known)).tokens.sum().to(tokens.dtype)
        return replace(features, tokens=tokens)

    def tokens(
        self, embeds: Tensor, batch: Batch, known: Survey | None, images: Sequence[tuple[list[int], Features]]
    ) -> Tensor:
        """The embeddings with the tokens that the fusion adds for whole scenes, in their slots.

        images: numbers and features of the batch's images, for a fusion that sees them.
        """
        extra, slots = self.fusion.extra, check_slots(batch, self.fusion.extra)
        if known is None or not extra:
            return embeds
        first = slots.nonzero()[::extra] if batch.views else slots.new_tensor([[0, -1]], dtype=torch.long)
        texts, asked = questions(embeds, batch, first)
        dtype = dtype_of(self.fusion)
        known.told.clear()
        for number, scenes in enumerate(known.scenes):
            question = texts[scenes].to(dtype)
            scene = Scene(known.outputs[number], known.tokens[number].to(dtype), question, asked[scenes])
            if self.fusion.sees:
                scene.vision, scene.shown = known.vision(number, images, self.seen)
            known.told.append(self.fusion.scene(scene))
        made = torch.cat([told.tokens for told in known.told])
        if not batch.views:
            return embeds + 0 * made.sum().to(embeds.dtype)
        if self.tally is not None and self.fusion.training:
            self.tally.added(made, texts, asked)
        order = torch.tensor([i for scenes in known.scenes for i in scenes], device=made.device).argsort()
        return embeds.masked_scatter(slots[..., None], made[order].to(embeds.dtype))

    def parts(self, vision: Features, geometry: Features, known: Survey) -> dict[str, Features]:
        """What a fusion gets, in its own precision."""
        parts = {"vision": vision, "geometry": geometry}
        if known.told and (beside := known.beside(geometry.where)) is not None:
            parts["scene"] = beside
        dtype = dtype_of(self.fusion, default=vision.tokens.dtype)
        return {name: replace(part, tokens=part.tokens.to(dtype)) for name, part in parts.items()}


def check_slots(batch: Batch, extra: int) -> Tensor:
    """(B,T) bool: where tokens of scenes stand; a ValueError unless there are `extra` for each scene."""
    slots, count = batch.layout.kind == Kind.GEOMETRY, extra * len(batch.views)
    if int(slots.sum()) != count:
        raise ValueError(
            f"the batch has {int(slots.sum())} geometry slots but its {len(batch.views)} scenes make {count} tokens "
            f"(samples {', '.join(batch.samples)}); use the model's own processor"
        )
    return slots


def questions(embeds: Tensor, batch: Batch, places: Tensor) -> tuple[Tensor, Tensor]:
    """(K,T,C) and (K,T) bool: the row of each place (K,2) from its sample on, and which of it is the question.

    An answer that is there to be learned must not be read, and in packed rows no other sample's text.
    """
    rows, number = places[:, 0], sample_numbers(batch.layout)
    own = (number[rows] == number[rows, places[:, 1]][:, None]) & batch.layout.visible[rows]
    answered = ((batch.labels[rows] != IGNORE) & own).long().cumsum(1)
    asked = (batch.layout.kind[rows] == Kind.TEXT) & own & (answered == 0)
    # what is before it is put behind it
    column = torch.arange(own.shape[1], device=own.device)
    turned = (own.long().argmax(1, keepdim=True) + column) % own.shape[1]
    return embeds[rows[:, None], turned], asked.gather(1, turned)


def check_fit(image: ImageSpec, what: str) -> None:
    """A ValueError where an image does not show all of its view."""
    if image.fit not in ("resize", "native"):
        raise ValueError(f"image fit {image.fit!r} with {what}: both must see the same pixels; use resize or native")


def dtype_of(module: nn.Module, default: torch.dtype = torch.float32) -> torch.dtype:
    return next((parameter.dtype for parameter in module.parameters()), default)


def _check(geometry: GeometryEncoder, fusion: Fusion, image: ImageSpec) -> None:
    told, source = type(fusion).__name__, type(geometry).__name__
    check_fit(image, "a geometry encoder")
    if lacks := fusion.needs - geometry.heads:
        raise ValueError(
            f"{told} reads {', '.join(sorted(lacks))}, which {source} does not predict; use another geometry encoder, "
            "or a fusion that reads tokens alone"
        )
    count = geometry.layer_count
    if count is not None and (beyond := [i for i in fusion.layers if not -count <= i < count]):
        raise ValueError(
            f"{told} reads layer {beyond[0]} of {source}, which has {count}; choose {-count} to {count - 1}"
        )
