"""Order: which samples a step takes, as a pure function of the step.

Epochs follow each other in one endless stream, each a permutation of its own; global step s takes the stream's places
[s G, (s+1) G), G = batch * accumulate * world. A step that crosses an epoch's end goes on with the next epoch, so no
sample is dropped or repeated within an epoch. Nothing depends on the number of workers, and the content of a step
depends on G alone, not on how G is split over ranks and micro-batches.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

_ROUNDS = 6


@dataclass(frozen=True)
class Order:
    """The part of the stream that one rank reads."""

    length: int
    seed: int = 0
    batch: int = 1
    accumulate: int = 1
    world: int = 1
    rank: int = 0
    shuffle: bool = True

    def __post_init__(self) -> None:
        if self.length < 1:
            raise ValueError("the data source is empty; give it at least one sample")
        if self.seed < 0:
            raise ValueError(f"seed {self.seed} is negative; use 0 or more")
        for name in ("batch", "accumulate", "world"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} {getattr(self, name)} is too small; use 1 or more")
        if not 0 <= self.rank < self.world:
            raise ValueError(f"rank {self.rank} is not one of {self.world} ranks; use 0 to {self.world - 1}")

    @property
    def step_size(self) -> int:
        """Samples of one global step."""
        return self.batch * self.accumulate * self.world

    @property
    def steps_per_epoch(self) -> int:
        """Global steps until every sample was seen once, rounded up."""
        return -(-self.length // self.step_size)

    def places(self, step: int, micro: int = 0) -> range:
        """Places in the stream that this rank's micro-batch `micro` of global step `step` takes."""
        first = step * self.step_size + (micro * self.world + self.rank) * self.batch
        return range(first, first + self.batch)

    def ids(self, step: int, micro: int = 0) -> list[int]:
        """The samples at these places."""
        return [self._at(place) for place in self.places(step, micro)]

    def stream(self, step: int = 0) -> Iterator[list[int]]:
        """Micro-batch after micro-batch from global step `step` on, without end."""
        while True:
            for micro in range(self.accumulate):
                yield self.ids(step, micro)
            step += 1

    def _at(self, place: int) -> int:
        epoch, index = divmod(place, self.length)
        return permute(index, self.length, key=(self.seed, epoch)) if self.shuffle else index


def permute(index: int, length: int, *, key: tuple[int, int]) -> int:
    """Where a keyed permutation of 0..length-1 sends `index`, in constant memory and alike on every machine.

    A Feistel network permutes the smallest power of four that holds `length`; values outside are sent on until they
    fall inside (the walk ends because it follows a cycle through `index`, which is inside).
    """
    bits = max(1, ((length - 1).bit_length() + 1) // 2)
    mask = (1 << bits) - 1
    keys = _round_keys(*key)
    while True:
        left, right = index >> bits, index & mask
        for round_key in keys:
            left, right = right, left ^ (_mix(right ^ round_key) & mask)
        index = left << bits | right
        if index < length:
            return index


@lru_cache(maxsize=64)
def _round_keys(seed: int, epoch: int) -> list[int]:
    return np.random.SeedSequence((seed, epoch)).generate_state(_ROUNDS, np.uint64).tolist()


def _mix(value: int) -> int:
    """The finaliser of splitmix64: every output bit depends on every input bit."""
    value = (value ^ value >> 30) * 0xBF58476D1CE4E5B9 & 0xFFFFFFFFFFFFFFFF
    value = (value ^ value >> 27) * 0x94D049BB133111EB & 0xFFFFFFFFFFFFFFFF
    return value ^ value >> 31
