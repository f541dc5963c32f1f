"""The random stream of one item: a pure function of (seed, split, index), the same on every machine and version."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeVar

import numpy as np

T = TypeVar("T")
_BLOCK = 128


class Dice:
    """Uniform draws from Philox: the seed is its key, the item's index the counter, so items cannot overlap.

    Only the raw 64-bit words are used, because numpy promises these (and not its distributions) across versions.
    """

    def __init__(self, seed: int, split: int, index: int) -> None:
        # The low counter word runs within the item; the higher ones tell items and splits apart.
        self._bits = np.random.Philox(key=seed, counter=[0, 0, index, split])
        self._left: list[float] = []

    def unit(self) -> float:
        """A number in [0, 1)."""
        if not self._left:
            self._left = ((self._bits.random_raw(_BLOCK)[::-1] >> np.uint64(11)) * 2.0**-53).tolist()
        return self._left.pop()

    def between(self, low: float, high: float) -> float:
        return low + (high - low) * self.unit()

    def spot(self, room: tuple[float, float], border: float) -> complex:
        """A place in the room, at least `border` from its edge."""
        return complex(*(self.between(border, side - border) for side in room))

    def integer(self, low: int, high: int) -> int:
        """An integer from low to high, both included."""
        return low + int((high - low + 1) * self.unit())

    def chance(self, probability: float) -> bool:
        return self.unit() < probability

    def pick(self, items: Sequence[T]) -> T:
        return items[int(len(items) * self.unit())]

    def weighted(self, weights: Sequence[float]) -> int:
        """An index, drawn in proportion to its weight."""
        aim = self.unit() * sum(weights)
        for index, weight in enumerate(weights):
            aim -= weight
            if aim < 0:
                return index
        return max(index for index, weight in enumerate(weights) if weight > 0)

    def sample(self, items: Iterable[T], count: int) -> list[T]:
        """`count` different items in random order."""
        pool = list(items)
        for i in range(count):
            j = i + int((len(pool) - i) * self.unit())
            pool[i], pool[j] = pool[j], pool[i]
        return pool[:count]

    def shuffled(self, items: Iterable[T]) -> list[T]:
        pool = list(items)
        return self.sample(pool, len(pool))
