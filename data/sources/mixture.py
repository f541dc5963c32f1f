"""Mixture: several sources as one, in given proportions."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate

from gnomon.data.sample import Sample, Source


class Mixture(Source):
    """One block per source, its share of `length` by largest remainder; the training order shuffles across blocks.

    weights  parts of the mixture; none: every source as it is, one after the other
    length   samples in all; none: just enough that no source is cut short. A source that gives more than it has is
             repeated, one that gives fewer is thinned out evenly.
    """

    def __init__(
        self, sources: Sequence[Source], *, weights: Sequence[float] | None = None, length: int | None = None
    ) -> None:
        self.sources = list(sources)
        if not self.sources or not all(map(len, self.sources)):
            raise ValueError(f"a mixture of {len(self.sources)} sources has an empty one or none; leave it out")
        weights = [len(source) for source in self.sources] if weights is None else list(weights)
        if len(weights) != len(self.sources) or min(weights) <= 0 or not math.isfinite(sum(weights)):
            raise ValueError(f"weights {weights} do not fit {len(self.sources)} sources; give each a positive number")
        shares = [weight / sum(weights) for weight in weights]
        if length is None:
            # the small slack keeps 100.00000000000001 from becoming 101
            length = max(math.ceil(len(s) / share - 1e-6) for s, share in zip(self.sources, shares))
        if length < 1:
            raise ValueError(f"mixture length {length} is too small; use 1 or more")
        self.counts = _apportion(shares, length)
        self._ends = list(accumulate(self.counts))

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < len(self):
            raise IndexError(index)
        k = bisect_right(self._ends, index)
        source, count = self.sources[k], self.counts[k]
        nth = index - self._ends[k] + count
        return source[nth % len(source) if count >= len(source) else nth * len(source) // count]


def _apportion(shares: Sequence[float], total: int) -> list[int]:
    """Whole numbers that add up to `total` and are within one of the exact shares."""
    exact = [share * total for share in shares]
    counts = [math.floor(x + 1e-6) for x in exact]
    neediest = sorted(range(len(exact)), key=lambda k: (counts[k] - exact[k], k))
    for k in neediest[: total - sum(counts)]:
        counts[k] += 1
    return counts
