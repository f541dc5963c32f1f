"""Mean: metrics averaged over samples as these come, each metric over the samples that have it."""

from __future__ import annotations

import math
from collections.abc import Mapping


class Mean:
    """A sample's nan (nothing to score) is left out; what no sample had stays nan."""

    def __init__(self) -> None:
        self._sums: dict[str, float] = {}
        self._weights: dict[str, float] = {}

    def add(self, values: Mapping[str, float], *, weight: float = 1.0) -> None:
        for name, value in values.items():
            self._sums.setdefault(name, 0.0)
            self._weights.setdefault(name, 0.0)
            if not math.isnan(value):
                self._sums[name] += weight * value
                self._weights[name] += weight

    def result(self) -> dict[str, float]:
        return {name: total / (self._weights[name] or math.nan) for name, total in self._sums.items()}
