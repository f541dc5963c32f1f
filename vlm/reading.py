"""What becomes of a batch on its way through the model: its images seen, its sequences read, its logits."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from gnomon.vlm.layout import Features, TokenLayout
from gnomon.vlm.rewrite import Rewrite
from gnomon.vlm.survey import Survey


@dataclass
class Output:
    """Logits at the positions that were asked for, and the labels they predict; `loss` as in Read."""

    logits: Tensor
    labels: Tensor
    layout: TokenLayout
    loss: Tensor | float = 0.0


@dataclass
class Seen:
    """The images of one size in a batch: which ones, the encoder's features, and their pixels in 0..1.

    survey: what the geometry encoder says of all scenes of the batch.
    """

    members: list[int]
    features: Features
    pixels: Tensor
    survey: Survey | None = None


@dataclass
class Read:
    """A batch behind the last layer. `before` and `after` are the layouts of the language model's two ends; `loss` is
    what there is to learn beside the answers, in training: the fusion's own loss and the auxiliary ones.
    """

    hidden: Tensor
    before: TokenLayout
    after: TokenLayout
    rewrites: list[Rewrite]
    loss: Tensor | float = 0.0

    def carry(self, tensor: Tensor, pad: int | bool) -> Tensor:
        """A side tensor of the batch as the hidden states have it."""
        for rewrite in self.rewrites:
            tensor = rewrite.carry(tensor, pad)
        return tensor
