"""Recipe: what is trained in which order. A stage takes a model and leaves one; nothing else passes between them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

from lightning import Callback

from gnomon.data.sample import Source
from gnomon.train.schedule import Kind
from gnomon.vlm.model import VLM


@dataclass(frozen=True)
class Optim:
    """AdamW and the course of its learning rate.

    warmup: a share of the steps (below 1) or a number of steps. floor: share of the peak that the cosine ends at.
    weight_decay: of matrices; biases, norms, embeddings and gates have none.
    """

    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    warmup: float = 0.03
    schedule: Kind = "cosine"
    floor: float = 0.0


@dataclass(frozen=True)
class Stage:
    """What one stage trains, on what, for how long.

    rates     peak learning rate of each trained part; the first glob that a parameter's name matches counts, and what
              none matches is frozen
    beside    likewise, of parts that not every model has; a glob that matches nothing does not count
    share     this stage's part of trainer.max_steps or of the budget; without either it is one pass over its data
    steps     or a fixed number of steps
    data      instead of data.train
    template  instead of the model's own, for this stage only
    callbacks made when the stage begins, so that a recipe is plain data until then
    check     raises a ValueError for a model that the stage cannot train
    """

    name: str
    rates: dict[str, float]
    share: float = 1.0
    steps: int | None = None
    batch_size: int | None = None
    data: Source | None = None
    template: str | None = None
    optim: Optim = field(default_factory=Optim)
    callbacks: Callable[[], list[Callback]] = list
    check: Callable[[VLM], None] | None = None
    beside: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for glob, rate in {**self.beside, **self.rates}.items():
            if not 0 <= rate < math.inf:
                raise ValueError(
                    f"stage {self.name}: learning rate {rate} of {glob} is negative or not finite; use 0 or more, "
                    "such as 2e-5"
                )


class Recipe:
    """A subclass's constructor arguments are its options."""

    def stages(self) -> list[Stage]:
        raise NotImplementedError
