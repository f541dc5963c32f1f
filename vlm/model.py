"""VLM: encode, connect, place, decode.

The model owns all that turns a conversation into logits: the encoder, the connector, the language model and its
tokenizer, the image rule and the chat template. What is trained is therefore what is evaluated and exported.

Shapes: B rows, T tokens, I images, N visual tokens, C width of the language model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gnomon.vlm.attention import attending
from gnomon.vlm.auxiliary.base import AuxLoss
from gnomon.vlm.blocks import reduced, tower_of
from gnomon.vlm.compute.base import Leave, VisualCompute
from gnomon.vlm.connectors.base import Bridge
from gnomon.vlm.decoder import DecodeState, Kept
from gnomon.vlm.encoders.base import Encoder
from gnomon.vlm.executor import fill, image_names, image_rows, place, policy, reduce_images
from gnomon.vlm.fusion.base import Fusion
from gnomon.vlm.geometry.base import GeometryEncoder
from gnomon.vlm.hf import CausalLM
from gnomon.vlm.layer_reduction import LayerReduction
from gnomon.vlm.layout import IGNORE, Batch, Features, ImageSpec, TokenLayout, Views, ViewsSpec
from gnomon.vlm.mixers.base import Mixer
from gnomon.vlm.ragged import interleave
from gnomon.vlm.reading import Output, Read, Seen
from gnomon.vlm.reduction.base import Stage, TokenReducer
from gnomon.vlm.rewrite import Rewrite
from gnomon.vlm.scenery import Scenery, check_fit, check_slots, dtype_of
from gnomon.vlm.visual import VisualLayers, runnable


class VLM(nn.Module):
    """A vision encoder, a connector and a language model, joined by a token layout.

    image: `size` (H,W) with `fit` resize, pad, crop or anyres; or no size with `fit: native`. See ImageSpec. With
    anyres a learned token ends each row of tokens that crops make side by side.
    template: name of the chat template, see data/template.py.
    reducers: what leaves out or merges visual tokens; each acts where its `stage` says.
    compute: what the decoder's layers spare visual tokens.
    geometry, fusion: what looks at a sample's views, and how the tokens of its images learn of it; both or none.
    max_views: of one scene, where the memory or the geometry encoder's training ends; None: as many as it takes.
    mixers: what stands in the decoder's layers in place of their self-attention; each says in which.
    aux: losses on the decoder's hidden states, in training beside that on the answers.
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
        max_views: int | None = None,
        mixers: Sequence[Mixer] = (),
        aux: Sequence[AuxLoss] = (),
    ) -> None:
        super().__init__()
        self.encoder, self.connector, self.lm = encoder, connector, lm
        self.mixers: list[Mixer] = []
        self.mix(mixers)
        connector.setup({"vision": encoder.width}, lm.width)
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
        if max_views is not None and max_views < 1:
            raise ValueError(f"max_views is {max_views}, but must be at least 1")
        self.max_views = max_views
        self.join(geometry, fusion)
        self.aux = nn.ModuleList()
        self.teach(aux)
        if self.image.positions == "grid" and lm.axes != 3:
            raise ValueError(
                f"image positions 'grid' with a {lm.model.config.model_type} language model, whose positions have one "
                "axis; use sequence"
            )
        newline = torch.randn(lm.width, dtype=dtype_of(lm)) / lm.width**0.5 if self.image.fit == "anyres" else None
        self.image_newline = None if newline is None else nn.Parameter(newline)
        self.template = template
        self.reducers = list(reducers)
        self.use(compute)
        self.register_buffer("mean", torch.tensor(self.image.mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(self.image.std).view(3, 1, 1), persistent=False)

    @property
    def tokenizer(self):
        return self.lm.tokenizer

    def join(self, geometry: GeometryEncoder | None, fusion: Fusion | None) -> None:
        """From now on this looks at samples' views and tells images of them; both or none."""
        if (geometry is None) != (fusion is None):
            given, lacking = ("geometry", "fusion") if fusion is None else ("fusion", "geometry")
            raise ValueError(f"the model has a {given} but no {lacking}; give both, or none")
        self.geometry, self.fusion, self.scenery = geometry, fusion, None
        if geometry is not None:
            widths = {"encoder": self.encoder.width, "lm": self.lm.width}
            some = {"stride": self.encoder.stride, "max_views": self.max_views}
            self.scenery = Scenery(geometry, fusion, image=self.image, **some, **widths)

    @property
    def views(self) -> ViewsSpec | None:
        """How the views of a sample become pixels; None: the model has no use for them."""
        if self.scenery is not None:
            return self.scenery.views
        return ViewsSpec(self.image.cell, size=self.image.size) if any(loss.views for loss in self.aux) else None

    def teach(self, aux: Sequence[AuxLoss]) -> None:
        """From now on training has these losses, too."""
        for loss in aux:
            if loss.views:
                check_fit(self.image, f"{type(loss).__name__} on the depth of views")
            loss.setup(self.lm.width, len(self.lm.layers))
        self.aux.extend(aux)

    def mix(self, mixers: Sequence[Mixer]) -> None:
        """Put mixers into the decoder's layers that they are for, for good; what these learned stays in their maps."""
        self.lm.mix(mixers)
        self.mixers += mixers

    def use(self, compute: VisualCompute | None) -> None:
        """From now on the decoder's layers spare visual tokens this; a ValueError where they cannot."""
        if compute is not None:
            vision = self.encoder.width * self.connector.merge**2
            compute.setup(vision=vision, width=self.lm.width, depth=len(self.lm.layers))
            self.lm.plain(type(compute).__name__)
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
            normal = ((pixels - self.mean.float()) / self.std.float()).to(dtype_of(self.encoder))
            if early:
                features = reduced(self.encoder, normal, pixels, early, want)
            else:
                features = self.encoder(normal, want) if want else self.encoder(normal)
            groups.append(Seen(members, features, pixels))
        if self.scenery is not None:
            places = any("xyz" in reducer.needs for reducer in (*reducers, *self.active))
            known = self.scenery.survey(views, places=places, touch=self._in_step, device=self.mean.device)
            for group in groups:
                group.survey = known
                group.features = known.locate(group.features, group.members) if known else group.features
        return groups

    def connect(self, seen: Seen, names: Sequence[str] = (), image: Tensor | None = None) -> Features:
        """Features at the language model's width, of the images of one size, reduced on both sides of the connector.

        names and image (the images' numbers in their rows) are for the reducers. A connector that merges cells needs
        them all: then what acts before it acts behind it, on the merged cells.
        """
        features = self._fuse(seen.features, seen, behind=False)
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
        tokens = source.tokens.to(dtype_of(self.connector, default=source.tokens.dtype))
        connected = self.connector({"vision": replace(source, tokens=tokens)})
        features = replace(features, tokens=connected.tokens, grid=connected.grid)
        features = self._fuse(features, seen, behind=True)
        for reducer in after:
            features = reduce(reducer, features)
        return features

    @property
    def _in_step(self) -> bool:
        """Ranks that shard or average a part must all run it, also one whose batch has no use for it."""
        return self.training and torch.is_grad_enabled()

    def _fuse(self, features: Features, seen: Seen, *, behind: bool) -> Features:
        if self.scenery is None or self.fusion.behind != behind:
            return features
        return self.scenery.fuse(features, seen.members, seen.survey, touch=self._in_step)

    def encode(self, images: list[Tensor]) -> Features:
        """Images to connected features, none of them reduced."""
        assert not self.active
        groups = self.see(images)
        connected = [self.connect(seen) for seen in groups]
        return interleave(connected, [seen.members for seen in groups])

    def embed(self, batch: Batch, seen: list[Seen] | None = None) -> tuple[Tensor, TokenLayout, Rewrite | None]:
        """Text embeddings with the images' features in their places, and what became of the sequence if it was reduced.

        seen: what `see` made of the batch's images, to use it more than once.
        """
        groups = self._look(batch) if seen is None else seen
        embeds, layout = self.lm.embed(batch.ids), batch.layout
        if self.image_newline is not None:
            ends = layout.is_image & (layout.cell[..., 0] < 0)
            embeds = torch.where(ends[..., None], self.image_newline.to(embeds.dtype), embeds)
        if not batch.pixels:
            return self._touch_vision(embeds, batch, groups), layout, None
        embeds = self._scenes(embeds, batch, groups)
        outside = [r for r in self.active if r.stage is not Stage.LLM_LAYER]
        if not outside:
            return self._fill(embeds, batch, [(g.members, self.connect(g)) for g in groups]), layout, None
        names, in_row = image_names(batch), image_rows(layout)
        connected = [
            (group.members, self.connect(group, [names[i] for i in group.members], in_row[group.members]))
            for group in groups
        ]
        embeds, rewrite = place(embeds, layout, connected, policy(outside[0], layout, inside=False))
        return embeds, rewrite.layout, rewrite

    def _fill(self, embeds: Tensor, batch: Batch, groups: list[tuple[list[int], Features]]) -> Tensor:
        return fill(embeds, batch, groups, crops=self.image_newline is not None)

    def _scenes(self, embeds: Tensor, batch: Batch, groups: list[Seen]) -> Tensor:
        """Tokens of whole scenes in their slots."""
        if self.scenery is None:
            check_slots(batch, 0)
            return embeds
        images = [(group.members, group.features) for group in groups]
        return self.scenery.tokens(embeds, batch, groups[0].survey, images)

    def _look(self, batch: Batch) -> list[Seen]:
        """What the encoders make of a batch. One without images may need a blank one: see `_touch_vision`.

        It comes before all else, with images and without: ranks that shard parts run these in one order.
        """
        if batch.pixels:
            return self.see(batch.pixels, views=batch.views)
        if not self._in_step and not batch.views:
            return []
        size = self.image.size or (self.image.cell, self.image.cell)
        return self.see([torch.zeros(3, *size, dtype=torch.uint8, device=batch.ids.device)], [], batch.views)

    def _touch_vision(self, embeds: Tensor, batch: Batch, groups: list[Seen]) -> Tensor:
        """Run the vision path on a blank image, times zero: ranks that shard or average it must all execute it.

        Scenes without images have tokens of their own all the same.
        """
        if not groups:
            return embeds
        embeds = self._scenes(embeds, batch, groups)
        features = self._fuse(groups[0].features, groups[0], behind=False)
        tokens = features.tokens.to(dtype_of(self.connector, default=features.tokens.dtype))
        connected = self.connector({"vision": replace(features, tokens=tokens)})
        connected = self._fuse(connected, groups[0], behind=True)
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
        seen, visual = self._look(batch) if seen is None else seen, None
        if self.compute is not None and batch.pixels:
            visual = self._spared(batch, seen)
        embeds, layout, rewrite = self.embed(batch, seen)
        acting = [r for r in self.active if r.stage is Stage.LLM_LAYER]
        if visual is not None and self.compute.leaves is not None:
            acting.append(Leave(self.compute.leaves))
        reduction = None
        if acting and batch.pixels:
            # with caches it is a prompt that is read, to be answered; without, answers stand there already
            labels = batch.labels if rewrite is None else rewrite.carry(batch.labels, IGNORE)
            labels = labels if state is None else None
            reduction = LayerReduction(
                acting, samples=batch.samples, probe=self.lm, depth=len(self.lm.layers), labels=labels
            )
        kept = Kept({i for loss in self.aux for i in loss.layers}) if self.aux and self._in_step else None
        hidden = self.lm(embeds, layout, state, reduction, visual, kept)
        rewrites = [] if rewrite is None else [rewrite]
        rewrites += [] if reduction is None else reduction.rewrites
        lost = seen[0].survey.loss if seen and seen[0].survey is not None else 0.0
        if kept is not None:
            lost = lost + sum(loss.tell(kept, batch, seen) for loss in self.aux)
        return Read(hidden, layout, rewrites[-1].layout if rewrites else layout, rewrites, lost)

    def forward(self, batch: Batch, *, at: Tensor | None = None) -> Output:
        """Next-token logits at the positions `at` (B,T bool); everywhere when None, as (B,T,V)."""
        read = self.read(batch)
        hidden = read.hidden
        following = read.carry(F.pad(batch.labels[:, 1:], (0, 1), value=IGNORE), IGNORE)
        if at is not None:
            at = read.carry(at, False)
            hidden, following = hidden[at], following[at]
        return Output(self.lm.head(hidden), following, read.after, read.loss)

    def loss(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Sum of the cross entropy over the supervised tokens, and their number.

        What is to be learned beside the answers comes to its own value once the sum is divided, whatever it is that
        `batch.targets` divides it by: its share of a step does not depend on how many tokens answers have.
        """
        at = F.pad(batch.labels[:, 1:] != IGNORE, (0, 1))
        output = self(batch, at=at)
        count = torch.as_tensor(output.labels.numel(), device=at.device)
        total = F.cross_entropy(output.logits.float(), output.labels, reduction="sum")
        return total + (count if batch.targets is None else batch.targets) * output.loss, count
