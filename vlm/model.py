"""VLM: encode, connect, place, decode.

The model owns all that turns a conversation into logits: the encoder, the connector, the language model and its
tokenizer, the image rule and the chat template. What is trained is therefore what is evaluated and exported.

Shapes: B rows, T tokens, I images, N visual tokens, C width of the language model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gnomon.vlm.blocks import reduced, tower_of
from gnomon.vlm.compute.base import Leave, VisualCompute
from gnomon.vlm.connectors.base import Bridge
from gnomon.vlm.decoder import DecodeState
from gnomon.vlm.encoders.base import Encoder
from gnomon.vlm.executor import image_names, image_numbers, image_slots, place, policy, reduce_images
from gnomon.vlm.fusion.base import Fusion
from gnomon.vlm.geometry.base import GeometryEncoder
from gnomon.vlm.hf import CausalLM, attending
from gnomon.vlm.layer_reduction import LayerReduction
from gnomon.vlm.layout import IGNORE, Batch, Features, ImageSpec, Kind, TokenLayout, Views, ViewsSpec
from gnomon.vlm.multiview.align import pool
from gnomon.vlm.reduction.base import Stage, TokenReducer
from gnomon.vlm.rewrite import Rewrite
from gnomon.vlm.survey import Survey, survey
from gnomon.vlm.visual import VisualLayers, runnable


@dataclass
class Output:
    """Logits at the positions that were asked for, and the labels they predict."""

    logits: Tensor
    labels: Tensor
    layout: TokenLayout


@dataclass
class Seen:
    """The images of one size in a batch: which ones, the encoder's features, and their pixels in 0..1.

    survey: what the geometry encoder says of all scenes of the batch.
    """

    members: list[int]
    features: Features
    pixels: Tensor
    survey: Survey | None = None

    @property
    def geometry(self) -> list[tuple[Tensor, Features]]:
        """Which of the images are views of a scene, and its features there; one pair per grid."""
        return [] if self.survey is None else self.survey.of(self.members)


@dataclass
class Read:
    """A batch behind the last layer. `before` and `after` are the layouts of the language model's two ends."""

    hidden: Tensor
    before: TokenLayout
    after: TokenLayout
    rewrites: list[Rewrite]

    def carry(self, tensor: Tensor, pad: int | bool) -> Tensor:
        """A side tensor of the batch as the hidden states have it."""
        for rewrite in self.rewrites:
            tensor = rewrite.carry(tensor, pad)
        return tensor


class VLM(nn.Module):
    """A vision encoder, a connector and a language model, joined by a token layout.

    image: `size` (H,W) with `fit` resize, pad, crop or anyres; or no size with `fit: native`. See ImageSpec. With
    anyres a learned token ends each row of tokens that crops make side by side.
    template: name of the chat template, see data/template.py.
    reducers: what leaves out or merges visual tokens; each acts where its `stage` says.
    compute: what the decoder's layers spare visual tokens.
    geometry, fusion: what looks at a sample's views, and how the tokens of its images learn of it; both or none.
    """

    def __init__(
        self,
        encoder: Encoder,
        connector: Bridge,
        lm: CausalLM,
        *,
        image_size: tuple[int, int] | None = (224, 224),
        image_fit: str = "resize",
        image_limit: int = 1 << 20,
        image_mean: tuple[float, float, float] = (0.5, 0.5, 0.5),
        image_std: tuple[float, float, float] = (0.5, 0.5, 0.5),
        image_least: int = 0,
        image_canvases: Sequence[tuple[int, int]] = (),
        image_positions: str = "sequence",
        template: str = "chatml",
        reducers: Sequence[TokenReducer] = (),
        compute: VisualCompute | None = None,
        geometry: GeometryEncoder | None = None,
        fusion: Fusion | None = None,
    ) -> None:
        super().__init__()
        self.encoder, self.connector, self.lm = encoder, connector, lm
        connector.setup({"vision": encoder.width}, lm.width)
        self.geometry, self.fusion = geometry, fusion
        self.image = ImageSpec(
            size=None if image_size is None else (image_size[0], image_size[1]),
            cell=encoder.stride * connector.merge,
            fit=image_fit,
            limit=image_limit,
            mean=tuple(image_mean),
            std=tuple(image_std),
            least=image_least,
            canvases=tuple((height, width) for height, width in image_canvases),
            positions=image_positions,
        )
        self._join()
        if self.image.positions == "grid" and lm.axes != 3:
            raise ValueError(
                f"image positions 'grid' with a {lm.model.config.model_type} language model, whose positions have one "
                "axis; use sequence"
            )
        newline = torch.randn(lm.width, dtype=_dtype(lm)) / lm.width**0.5 if self.image.fit == "anyres" else None
        self.image_newline = None if newline is None else nn.Parameter(newline)
        self.template = template
        self.reducers = list(reducers)
        self.use(compute)
        self.register_buffer("mean", torch.tensor(self.image.mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(self.image.std).view(3, 1, 1), persistent=False)

    @property
    def tokenizer(self):
        return self.lm.tokenizer

    def _join(self) -> None:
        """Set the fusion up between its neighbours; a ValueError where they do not go together."""
        if (self.geometry is None) != (self.fusion is None):
            given, lacking = ("geometry", "fusion") if self.fusion is None else ("fusion", "geometry")
            raise ValueError(f"the model has a {given} but no {lacking}; give both, or none")
        if self.fusion is None:
            return
        if self.image.fit not in ("resize", "native"):
            raise ValueError(
                f"image fit {self.image.fit!r} with a geometry encoder: both encoders must see the same pixels; use "
                "resize or native"
            )
        if lacks := self.fusion.needs - self.geometry.heads:
            raise ValueError(
                f"{type(self.fusion).__name__} reads {', '.join(sorted(lacks))}, which {type(self.geometry).__name__} "
                "does not predict; use another geometry encoder, or a fusion that reads tokens alone"
            )
        width = self.lm.width if self.fusion.behind else self.encoder.width
        self.fusion.setup({"vision": width, "geometry": self.geometry.width}, width)

    @property
    def views(self) -> ViewsSpec | None:
        """How the views of a sample become pixels; None: the model has no use for them."""
        if self.geometry is None:
            return None
        return ViewsSpec(self.geometry.multiple, self.geometry.max_views, self.fusion.extra, self.image.size)

    def use(self, compute: VisualCompute | None) -> None:
        """From now on the decoder's layers spare visual tokens this; a ValueError where they cannot."""
        if compute is not None:
            vision = self.encoder.width * self.connector.merge**2
            compute.setup(vision=vision, width=self.lm.width, depth=len(self.lm.layers))
            runnable(compute, self.lm.layers)
        self.compute = compute
        self.check(self.reducers)

    def check(self, reducers: Sequence[TokenReducer]) -> None:
        """A ValueError for reducers that this model cannot run, before any work."""
        for reducer in reducers:
            inside = reducer.stage is Stage.LLM_LAYER
            if self.compute is not None and (inside or self.compute.reads) and not reducer.idle():
                where = "between decoder layers" if inside else "on features that every layer reads"
                raise ValueError(
                    f"{type(reducer).__name__} acts {where}, which {type(self.compute).__name__} does not allow; "
                    "use one of the two"
                )
        inside = [reducer for reducer in reducers if reducer.stage is Stage.LLM_LAYER]
        LayerReduction(inside, samples=(), probe=self.lm, depth=len(self.lm.layers))
        for reducer in reducers:
            self.in_encoder(reducer)

    def in_encoder(self, reducer: TokenReducer) -> bool:
        """Whether a reducer acts before or between the encoder's blocks; where it cannot, it acts behind them."""
        if reducer.stage not in (Stage.PIXEL, Stage.VIT_LAYER) or reducer.inside is False:
            return False
        able = self.connector.merge == 1 and tower_of(self.encoder) is not None
        if reducer.inside and not able:
            raise ValueError(
                f"{type(reducer).__name__} with inside: true, but this encoder's blocks cannot be walked, or the "
                f"connector merges cells (by {self.connector.merge}); leave `inside` out to act on the output"
            )
        return able

    @property
    def active(self) -> list[TokenReducer]:
        """The reducers that change anything."""
        return [reducer for reducer in self.reducers if not reducer.idle()]

    def see(
        self, images: list[Tensor], reducers: Sequence[TokenReducer] | None = None, views: Sequence[Views] = ()
    ) -> list[Seen]:
        """(3,H,W) uint8 images of any mix of sizes to the encoder's features; one encoder call per distinct size.

        reducers: what asks the encoder for more than features; by default the model's own. views: of their scenes.
        """
        reducers = self.active if reducers is None else reducers
        early = [r for r in reducers if self.in_encoder(r)]
        want = frozenset(name for reducer in reducers if reducer not in early for name in reducer.needs)
        sizes: dict[tuple[int, int], list[int]] = {}
        for i, image in enumerate(images):
            sizes.setdefault((image.shape[1], image.shape[2]), []).append(i)
        groups = []
        for members in sizes.values():
            pixels = torch.stack([images[i] for i in members]).to(self.mean.device).float() / 255
            normal = ((pixels - self.mean.float()) / self.std.float()).to(_dtype(self.encoder))
            if early:
                features = reduced(self.encoder, normal, pixels, early, want)
            else:
                features = self.encoder(normal, want) if want else self.encoder(normal)
            groups.append(Seen(members, features, pixels))
        known = self._survey(views)
        return [group if known is None else _placed(replace(group, survey=known)) for group in groups]

    def connect(self, seen: Seen, names: Sequence[str] = (), image: Tensor | None = None) -> Features:
        """Features at the language model's width, of the images of one size, reduced on both sides of the connector.

        names and image (the images' numbers in their rows) are for the reducers. A connector that merges cells needs
        them all: then what acts before it acts behind it, on the merged cells.
        """
        features = seen.features
        if self.fusion is not None and not self.fusion.behind:
            features = self._fuse(features, seen)
        before = [r for r in self.active if r.stage in (Stage.PIXEL, Stage.VIT_LAYER) and not self.in_encoder(r)]
        before += [r for r in self.active if r.stage is Stage.POST_ENCODER]
        after = [r for r in self.active if r.stage is Stage.POST_PROJECTOR]
        whole = features
        if self.connector.merge > 1:
            before, after = [], before + after
            features = features.merged(self.connector.merge) if after else features
        reduce = partial(reduce_images, names=list(names), pixels=seen.pixels, image=image)
        for reducer in before:
            features = reduce(reducer, features)
        source = whole if self.connector.merge > 1 else features
        tokens = source.tokens.to(_dtype(self.connector, default=source.tokens.dtype))
        connected = self.connector({"vision": replace(source, tokens=tokens)})
        features = replace(features, tokens=connected.tokens, grid=connected.grid)
        if self.fusion is not None and self.fusion.behind:
            features = self._fuse(features, seen)
        for reducer in after:
            features = reduce(reducer, features)
        return features

    @property
    def _in_step(self) -> bool:
        """Ranks that shard or average a part must all run it, also one whose batch has no use for it."""
        return self.training and torch.is_grad_enabled()

    def _survey(self, views: Sequence[Views]) -> Survey | None:
        if self.geometry is None or not (views or self._in_step):
            return None
        if not views:
            views = [Views.blank(*self.views.target(self.image.cell, self.image.cell), self.mean.device)]
        heads = set(self.fusion.needs)
        if any("xyz" in reducer.needs for reducer in self.active) and "points" in self.geometry.heads:
            heads.add("points")
        return survey(self.geometry, views, layer=self.fusion.layer, heads=heads)

    def _fuse(self, features: Features, seen: Seen) -> Features:
        """Images with geometry learn of it; all others keep their tokens bit for bit."""
        tokens = features.tokens
        for places, known in seen.geometry:
            fused = self.fusion(self._parts(features.at(places), known))
            tokens = tokens.index_copy(0, places, fused.tokens.to(tokens.dtype))
        if not seen.geometry and self._in_step:
            cell = self.image.cell if self.fusion.behind else self.encoder.stride
            (h, w), known = self.views.target(self.image.cell, self.image.cell), seen.survey.view(0, 0, 0)
            grid = max(1, h // cell), max(1, w // cell)
            blank = Features(tokens.new_zeros(1, grid[0] * grid[1], tokens.shape[2]), [grid])
            tokens = tokens + 0 * self.fusion(self._parts(blank, known)).tokens.sum().to(tokens.dtype)
        return replace(features, tokens=tokens)

    def _parts(self, vision: Features, geometry: Features) -> dict[str, Features]:
        """What a fusion gets, in its own precision."""
        dtype = _dtype(self.fusion, default=vision.tokens.dtype)
        parts = {"vision": vision, "geometry": geometry}
        return {name: replace(part, tokens=part.tokens.to(dtype)) for name, part in parts.items()}

    def encode(self, images: list[Tensor]) -> Features:
        """Images to connected features, none of them reduced."""
        assert not self.active
        groups = self.see(images)
        connected = [self.connect(seen) for seen in groups]
        if len(connected) == 1:
            return connected[0]
        return _interleave(connected, [seen.members for seen in groups])

    def embed(self, batch: Batch, seen: list[Seen] | None = None) -> tuple[Tensor, TokenLayout, Rewrite | None]:
        """Text embeddings with the images' features in their places, and what became of the sequence if it was reduced.

        seen: what `see` made of the batch's images, to use it more than once.
        """
        embeds, layout = self.lm.embed(batch.ids), batch.layout
        if self.image_newline is not None:
            ends = layout.is_image & (layout.cell[..., 0] < 0)
            embeds = torch.where(ends[..., None], self.image_newline.to(embeds.dtype), embeds)
        if not batch.pixels:
            return self._touch_vision(embeds), layout, None
        groups = self.see(batch.pixels, views=batch.views) if seen is None else seen
        embeds = self._scenes(embeds, batch, groups[0].survey)
        outside = [r for r in self.active if r.stage is not Stage.LLM_LAYER]
        if not outside:
            return self._fill(embeds, batch, [(g.members, self.connect(g)) for g in groups]), layout, None
        names, number = image_names(layout, batch.samples), image_numbers(layout)
        if len(names) != len(batch.pixels):
            raise ValueError(
                f"the batch has slots for {len(names)} images and {len(batch.pixels)} images (samples "
                f"{', '.join(batch.samples)}); use the model's own processor"
            )
        in_row = layout.image[number >= 0][_first_of(number[number >= 0], len(names))]
        connected = [
            (group.members, self.connect(group, [names[i] for i in group.members], in_row[group.members]))
            for group in groups
        ]
        embeds, rewrite = place(embeds, layout, connected, policy(outside[0], layout, inside=False))
        return embeds, rewrite.layout, rewrite

    def _fill(self, embeds: Tensor, batch: Batch, connected: list[tuple[list[int], Features]]) -> Tensor:
        """Every token of every image in its slot."""
        groups = [features for _, features in connected]
        features = groups[0] if len(groups) == 1 else _interleave(groups, [members for members, _ in connected])
        if self.image_newline is not None:
            # crops take turns row by row, and not all of their cells are in the sequence
            slots = image_slots(batch.layout, features.grid)
            visual = features.tokens[:, : slots.shape[1]].to(embeds.dtype)
            filled = embeds.flatten(0, 1).index_put((slots[slots >= 0],), visual[slots >= 0])
            return filled.view_as(embeds)
        visual, slots = features.tokens[features.valid], batch.layout.is_image
        if int(slots.sum()) != visual.shape[0]:
            raise ValueError(
                f"the batch has {int(slots.sum())} image slots but its {len(batch.pixels)} images make "
                f"{visual.shape[0]} tokens (samples {', '.join(batch.samples)}); use the model's own processor"
            )
        return embeds.masked_scatter(slots[..., None], visual.to(embeds.dtype))

    def _scenes(self, embeds: Tensor, batch: Batch, known: Survey | None) -> Tensor:
        """The tokens that the fusion adds for whole scenes, in their slots."""
        slots = batch.layout.kind == Kind.GEOMETRY
        count = 0 if self.fusion is None else self.fusion.extra * len(batch.views)
        if int(slots.sum()) != count:
            raise ValueError(
                f"the batch has {int(slots.sum())} geometry slots but its {len(batch.views)} scenes make {count} "
                f"tokens (samples {', '.join(batch.samples)}); use the model's own processor"
            )
        if known is None or not self.fusion.extra:
            return embeds
        # of the question alone: an answer that is there to be learned must not be read
        asked = (batch.layout.kind == Kind.TEXT) & ((batch.labels != IGNORE).long().cumsum(1) == 0)
        rows = _rows_of(slots, self.fusion.extra) if batch.views else asked.new_zeros(1, dtype=torch.long)
        made = []
        for number, scenes in enumerate(known.scenes):
            row = rows[scenes]
            tokens, valid = known.whole(number)
            made.append(self.fusion.scene(tokens.to(_dtype(self.fusion)), valid, embeds[row], asked[row]))
        tokens = torch.cat(made)
        if not batch.views:
            return embeds + 0 * tokens.sum().to(embeds.dtype)
        order = torch.tensor([i for scenes in known.scenes for i in scenes], device=tokens.device).argsort()
        return embeds.masked_scatter(slots[..., None], tokens[order].to(embeds.dtype))

    def _touch_vision(self, embeds: Tensor) -> Tensor:
        """Run the vision path on one blank cell, times zero: ranks that shard or average it must all execute it."""
        if not self._in_step:
            return embeds
        size = self.image.size or (self.image.cell, self.image.cell)
        blank = torch.zeros(3, *size, dtype=torch.uint8, device=embeds.device)
        seen = self.see([blank], [])[0]
        features = seen.features
        if self.fusion is not None and not self.fusion.behind:
            features = self._fuse(features, seen)
        tokens = features.tokens.to(_dtype(self.connector, default=features.tokens.dtype))
        connected = self.connector({"vision": replace(features, tokens=tokens)})
        if self.fusion is not None and self.fusion.behind:
            connected = self._fuse(connected, seen)
        made = [connected.tokens]
        if self.compute is not None and self.compute.reads:
            stacked = features.stacked(self.connector.merge).tokens
            made += [fed for i in range(len(self.lm.layers)) if (fed := self.compute.feed(i, stacked)) is not None]
        return embeds + 0 * sum(each.sum() for each in made).to(embeds.dtype)

    def _spared(self, batch: Batch, seen: list[Seen]) -> VisualLayers:
        """The decoder's layers for this batch, as the model's policy has them."""
        source = None
        if self.compute.reads:
            groups = [(group.members, group.features.stacked(self.connector.merge)) for group in seen]
            tokens = groups[0][1].tokens
            source = self._fill(tokens.new_zeros(*batch.ids.shape, tokens.shape[2]), batch, groups)
        return VisualLayers(self.compute, attending, source)

    def read(self, batch: Batch, state: DecodeState | None = None, seen: list[Seen] | None = None) -> Read:
        """Everything up to the head: the whole sequence's hidden states, its layout before and after the layers."""
        visual = None
        if self.compute is not None and batch.pixels:
            seen = self.see(batch.pixels, views=batch.views) if seen is None else seen
            visual = self._spared(batch, seen)
        embeds, layout, rewrite = self.embed(batch, seen)
        acting = [r for r in self.active if r.stage is Stage.LLM_LAYER]
        if visual is not None and self.compute.leaves is not None:
            acting.append(Leave(self.compute.leaves))
        rewrites = [] if rewrite is None else [rewrite]
        if not acting or not batch.pixels:
            return Read(self.lm(embeds, layout, state, visual=visual), layout, layout, rewrites)
        # with caches it is a prompt that is read, to be answered; without, answers stand there already
        labels = None if state is not None else batch.labels if rewrite is None else rewrite.carry(batch.labels, IGNORE)
        reduction = LayerReduction(
            acting, samples=batch.samples, probe=self.lm, depth=len(self.lm.layers), labels=labels
        )
        hidden = self.lm(embeds, layout, state, reduction, visual)
        after = reduction.rewrites[-1].layout if reduction.rewrites else layout
        return Read(hidden, layout, after, rewrites + reduction.rewrites)

    def forward(self, batch: Batch, *, at: Tensor | None = None) -> Output:
        """Next-token logits at the positions `at` (B,T bool); everywhere when None, as (B,T,V)."""
        read = self.read(batch)
        hidden = read.hidden
        following = read.carry(F.pad(batch.labels[:, 1:], (0, 1), value=IGNORE), IGNORE)
        if at is not None:
            at = read.carry(at, False)
            hidden, following = hidden[at], following[at]
        return Output(self.lm.head(hidden), following, read.after)

    def loss(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Sum of the cross entropy over the supervised tokens, and their number."""
        at = F.pad(batch.labels[:, 1:] != IGNORE, (0, 1))
        output = self(batch, at=at)
        count = torch.as_tensor(output.labels.numel(), device=at.device)
        return F.cross_entropy(output.logits.float(), output.labels, reduction="sum"), count


def _first_of(number: Tensor, count: int) -> Tensor:
    """(count,) where each of the numbers 0..count-1 comes first."""
    place = torch.arange(len(number), device=number.device)
    return number.new_full((count,), len(number)).scatter_reduce(0, number, place, "amin")


def _placed(seen: Seen) -> Seen:
    """With the places in space of the features' cells, where the geometry encoder says them for all of the images."""
    for places, known in seen.geometry:
        if len(places) == len(seen.members) and known.xyz is not None:
            grids = known.grid[0], seen.features.grid[0]
            return replace(seen, features=replace(seen.features, xyz=pool(known.xyz, *grids, known.confidence)))
    return seen


def _rows_of(slots: Tensor, extra: int) -> Tensor:
    """The row of each scene, from its slots."""
    return slots.nonzero()[::extra, 0]


def _dtype(module: nn.Module, default: torch.dtype = torch.float32) -> torch.dtype:
    return next((parameter.dtype for parameter in module.parameters()), default)


def _interleave(groups: list[Features], members: list[list[int]]) -> Features:
    """Groups of equal-sized images back into one padded batch in the images' own order."""
    count, most = sum(map(len, members)), max(g.tokens.shape[1] for g in groups)
    first = groups[0].tokens
    order = torch.tensor([i for group in members for i in group], device=first.device).argsort()
    tokens = torch.cat([F.pad(g.tokens, (0, 0, 0, most - g.tokens.shape[1])) for g in groups])[order]
    grids = {i: g.grid[k] for g, group in zip(groups, members) for k, i in enumerate(group)}
    return replace(groups[0], tokens=tokens, grid=[grids[i] for i in range(count)], cls=None)
