"""The learning rate as a pure function of the step: linear warm-up, then a cosine to its floor, or constant.

Nothing is stateful, so a resumed run needs only the step and the planned number of steps.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

Kind = Literal["cosine", "constant"]


@dataclass(frozen=True)
class Schedule:
    """total: planned steps. warmup: steps that rise to the peak. floor: share of the peak that the cosine ends at."""

    total: int
    warmup: int = 0
    kind: Kind = "cosine"
    floor: float = 0.0

    def __post_init__(self) -> None:
        if self.total < 1:
            raise ValueError(f"a stage of {self.total} steps trains nothing; set trainer.max_steps to 1 or more")

    def factor(self, step: int) -> float:
        """What the peak learning rate is multiplied by at `step`, counted from 0."""
        if step < self.warmup:
            return (step + 1) / self.warmup
        if self.kind == "constant":
            return 1.0
        done = min(1.0, (step - self.warmup) / max(1, self.total - self.warmup))
        return self.floor + (1 - self.floor) * 0.5 * (1 + math.cos(math.pi * done))


def warmup_steps(warmup: float, total: int) -> int:
    """`warmup` below 1 is a share of all steps (rounded up), from 1 on a number of steps."""
    if warmup < 0:
        raise ValueError(f"warmup {warmup} is negative; give a share below 1 or a number of steps")
    return math.ceil(warmup * total) if warmup < 1 else min(total, round(warmup))
