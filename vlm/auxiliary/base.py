"""AuxLoss: a loss on hidden states of the language model, in training beside that on the answers.

It is called for every micro-batch of training, whatever is in it, and runs all of its parameters: ranks that shard or
average parts must run the same ones in the same order, and may have to hear of each other's targets.

Shapes: B rows, T tokens, I images, N visual tokens, C width of the language model.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, distributed, nn

from gnomon.vlm.decoder import Kept
from gnomon.vlm.layout import Batch
from gnomon.vlm.part import Part
from gnomon.vlm.placement import Layers, chosen
from gnomon.vlm.reading import Seen


class AuxLoss(Part, nn.Module):
    """Constructor arguments are the options. Its parameters are of no use but in training: `load` leaves them out.

    layers  whose hidden states it reads, as they leave the layer; see placement.py
    views   whether it wants the views of the samples' scenes
    """

    views: bool = False

    def __init__(self, layers: Layers) -> None:
        super().__init__()
        self.layers = layers
        self._sum, self._calls = torch.zeros(()), 0

    def setup(self, width: int, depth: int) -> None:
        """Make the parameters for a language model of this width and number of layers; once."""
        self.layers = chosen(self.layers, depth, what=type(self).__name__)

    def forward(self, kept: Kept, batch: Batch, seen: Sequence[Seen]) -> Tensor:
        """A scalar, whose mean over the processes is the loss of all their micro-batches together.

        seen: the batch's images; where it has none, and no scenes, that is a blank one, and this is zero with a graph.
        """
        raise NotImplementedError

    def tell(self, kept: Kept, batch: Batch, seen: Sequence[Seen]) -> Tensor:
        """The same, kept for the log."""
        value = self(kept, batch, seen)
        self._sum, self._calls = self._sum.to(value.device) + value.detach().float(), self._calls + 1
        return value

    def take(self, device: torch.device) -> Tensor:
        """The mean since the last time."""
        mean = self._sum.to(device) / max(1, self._calls)
        self._sum, self._calls = torch.zeros(()), 0
        return mean


def visual(kept: Kept, layer: int, batch: Batch) -> tuple[Tensor, Tensor]:
    """(I,N,C) the visual tokens of each image that are there when they leave the layer, and (I,N) which are real.

    Of a batch without images, those of one image that is not there.
    """
    hidden, layout = kept.hidden[layer], kept.layout[layer]
    images = max(1, len(batch.pixels))
    # counted in the whole sequence: an image may have lost all of its tokens
    per_row = batch.layout.image.amax(1) + 1
    number = layout.image + (per_row.cumsum(0) - per_row)[:, None]
    flat = layout.is_image.flatten().nonzero()[:, 0]
    number, order = number.flatten()[flat].sort(stable=True)
    counts = torch.bincount(number, minlength=images)
    column = torch.arange(len(number), device=number.device) - (counts.cumsum(0) - counts)[number]
    # with a graph although there may be no token at all, so that all ranks have the same one
    tokens = hidden.new_zeros(images, max(1, int(counts.max())), hidden.shape[2]) + 0 * hidden[:1, :1]
    tokens = tokens.index_put((number, column), hidden.flatten(0, 1)[flat[order]])
    return tokens, torch.arange(tokens.shape[1], device=number.device) < counts[:, None]


def processes() -> int:
    """How many train together."""
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def everywhere(rows: Tensor) -> tuple[Tensor, int]:
    """(n,...) of all processes one after the other, without a graph, and where this one's begin. Collective."""
    rows, world = rows.detach(), processes()
    if world == 1:
        return rows, 0
    counts = [torch.zeros(1, dtype=torch.long, device=rows.device) for _ in range(world)]
    distributed.all_gather(counts, torch.tensor([len(rows)], device=rows.device))
    sizes = torch.cat(counts).tolist()
    # collectives want equal shapes
    own = rows.new_zeros(max(sizes), *rows.shape[1:])
    own[: len(rows)] = rows
    found = [torch.empty_like(own) for _ in range(world)]
    distributed.all_gather(found, own)
    return torch.cat([part[:size] for part, size in zip(found, sizes)]), sum(sizes[: distributed.get_rank()])
