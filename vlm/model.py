"""VLM: encode, connect, place, decode.

The model owns all that turns a conversation into logits: the encoder, the connector, the language model and its
tokenizer, the image rule and the chat template. What is trained is therefore what is evaluated and exported.

Shapes: B rows, T tokens, I images, N visual tokens, C width of the language model.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gnomon.vlm.connectors.base import Bridge
from gnomon.vlm.encoders.base import Encoder
from gnomon.vlm.hf import CausalLM
from gnomon.vlm.layout import IGNORE, Batch, Features, ImageSpec, TokenLayout


@dataclass
class Output:
    """Logits at the positions that were asked for, and the labels they predict."""

    logits: Tensor
    labels: Tensor
    layout: TokenLayout


class VLM(nn.Module):
    """A vision encoder, a connector and a language model, joined by a token layout.

    image: `size` (H,W) with `fit` resize, pad or crop; or no size with `fit: native`. See ImageSpec.
    template: name of the chat template, see data/template.py.
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
        template: str = "chatml",
    ) -> None:
        super().__init__()
        self.encoder, self.connector, self.lm = encoder, connector, lm
        connector.setup({"vision": encoder.width}, lm.width)
        self.image = ImageSpec(
            size=None if image_size is None else (image_size[0], image_size[1]),
            cell=encoder.stride * connector.merge,
            fit=image_fit,
            limit=image_limit,
            mean=tuple(image_mean),
            std=tuple(image_std),
        )
        self.template = template
        self.register_buffer("mean", torch.tensor(self.image.mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(self.image.std).view(3, 1, 1), persistent=False)

    @property
    def tokenizer(self):
        return self.lm.tokenizer

    def encode(self, images: list[Tensor]) -> Features:
        """(3,H,W) uint8 images of any mix of sizes to connected features; one encoder call per distinct size."""
        sizes: dict[tuple[int, int], list[int]] = {}
        for i, image in enumerate(images):
            sizes.setdefault((image.shape[1], image.shape[2]), []).append(i)
        groups = []
        for members in sizes.values():
            pixels = torch.stack([images[i] for i in members]).to(self.mean.device)
            pixels = ((pixels.float() / 255 - self.mean.float()) / self.std.float()).to(_dtype(self.encoder))
            seen = self.encoder(pixels)
            seen.tokens = seen.tokens.to(_dtype(self.connector, default=seen.tokens.dtype))
            groups.append(self.connector({"vision": seen}))
        if len(groups) == 1:
            return groups[0]
        return _interleave(groups, list(sizes.values()))

    def embed(self, batch: Batch) -> tuple[Tensor, TokenLayout]:
        """Text embeddings with the images' features put in their places."""
        embeds = self.lm.embed(batch.ids)
        layout = batch.layout
        if not batch.pixels:
            return self._touch_vision(embeds), layout
        features = self.encode(batch.pixels)
        visual = features.tokens[features.valid]
        slots = layout.is_image
        if int(slots.sum()) != visual.shape[0]:
            raise ValueError(
                f"the batch has {int(slots.sum())} image slots but its {len(batch.pixels)} images make "
                f"{visual.shape[0]} tokens (samples {', '.join(batch.samples)}); use the model's own processor"
            )
        return embeds.masked_scatter(slots[..., None], visual.to(embeds.dtype)), layout

    def _touch_vision(self, embeds: Tensor) -> Tensor:
        """Run the vision path on one blank cell, times zero: ranks that shard or average it must all execute it."""
        if not (self.training and torch.is_grad_enabled()):
            return embeds
        size = self.image.size or (self.image.cell, self.image.cell)
        blank = torch.zeros(3, *size, dtype=torch.uint8, device=embeds.device)
        return embeds + 0 * self.encode([blank]).tokens.sum().to(embeds.dtype)

    def forward(self, batch: Batch, *, at: Tensor | None = None) -> Output:
        """Next-token logits at the positions `at` (B,T bool); everywhere when None, as (B,T,V)."""
        embeds, layout = self.embed(batch)
        hidden = self.lm(embeds, layout)
        following = F.pad(batch.labels[:, 1:], (0, 1), value=IGNORE)
        if at is not None:
            hidden, following = hidden[at], following[at]
        return Output(self.lm.head(hidden), following, layout)

    def loss(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Sum of the cross entropy over the supervised tokens, and their number."""
        at = F.pad(batch.labels[:, 1:] != IGNORE, (0, 1))
        output = self(batch, at=at)
        return F.cross_entropy(output.logits.float(), output.labels, reduction="sum"), at.sum()


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
