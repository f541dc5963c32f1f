"""Numbers with their uncertainty: intervals, paired tests, and the few metrics that several benchmarks share."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence

import numpy as np

Z95 = 1.959963984540054
Box = tuple[float, float, float, float]


def wilson(hits: float, n: int, *, z: float = Z95) -> tuple[float, float]:
    """Wilson's interval for a share; sensible at 0, at 1 and for small n."""
    if n == 0:
        return 0.0, 1.0
    share, square = hits / n, z * z
    centre = (share + square / (2 * n)) / (1 + square / n)
    half = z * math.sqrt(share * (1 - share) / n + square / (4 * n * n)) / (1 + square / n)
    return max(0.0, centre - half), min(1.0, centre + half)


def resampled_means(
    scores: Sequence[float], groups: Sequence[Hashable] | None = None, *, resamples: int = 10_000, seed: int = 0
) -> np.ndarray:
    """(resamples,) means, each of as many groups (images) as there are, drawn with replacement.

    A group is drawn whole, so that questions about one image are not counted as independent.
    """
    values = np.asarray(scores, dtype=np.float64)
    if groups is None:
        sums, counts = values, np.ones_like(values)
    else:
        index = {group: i for i, group in enumerate(dict.fromkeys(groups))}
        member = np.fromiter((index[group] for group in groups), dtype=np.int64, count=len(values))
        sums = np.bincount(member, weights=values)
        counts = np.bincount(member).astype(np.float64)
    rng = np.random.default_rng(seed)
    size = len(sums)
    means = np.empty(resamples)
    # a few million draws at a time: the whole table would be gigabytes for a large benchmark
    step = max(1, 4_000_000 // size)
    for start in range(0, resamples, step):
        drawn = rng.integers(size, size=(min(step, resamples - start), size))
        means[start : start + len(drawn)] = sums[drawn].sum(1) / counts[drawn].sum(1)
    return means


def interval(means: np.ndarray, *, level: float = 0.95) -> tuple[float, float]:
    """Percentile interval of resampled means."""
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def bootstrap(
    scores: Sequence[float],
    groups: Sequence[Hashable] | None = None,
    *,
    resamples: int = 10_000,
    seed: int = 0,
    level: float = 0.95,
) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean, over groups (images) where they are given."""
    return interval(resampled_means(scores, groups, resamples=resamples, seed=seed), level=level)


def standard_error(scores: Sequence[float], groups: Sequence[Hashable] | None = None) -> float:
    """Standard error of the mean; with groups, the covariance inside each group is added."""
    values = np.asarray(scores, dtype=np.float64)
    n = len(values)
    if n < 2:
        return 0.0
    rest = values - values.mean()
    variance = (rest**2).sum() / (n - 1) / n
    if groups is not None:
        sums: dict[Hashable, float] = {}
        for group, r in zip(groups, rest):
            sums[group] = sums.get(group, 0.0) + float(r)
        # sum over pairs i != j of one group = (sum of the group)^2 minus its squares
        variance += (sum(s * s for s in sums.values()) - (rest**2).sum()) / n**2
    return math.sqrt(max(0.0, variance))


def mcnemar(only_first: int, only_second: int) -> float:
    """Exact two-sided p value that two models differ, from the items that just one of them got right."""
    n, k = only_first + only_second, min(only_first, only_second)
    tail = sum(math.comb(n, i) for i in range(k + 1)) / 2**n
    return min(1.0, 2 * tail)


def mra(prediction: float, truth: float) -> float:
    """Mean relative accuracy over the thresholds 0.50, 0.55, ..., 0.95."""
    error = abs(prediction - truth) / abs(truth)
    # linspace and not 0.5 + 0.05 k: ties at the thresholds fall as in the published scorer
    return float((error <= 1 - np.linspace(0.5, 0.95, 10)).mean())


def iou(a: Box, b: Box) -> float:
    """Intersection over union of two boxes (x1, y1, x2, y2)."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    shared = max(0.0, width) * max(0.0, height)
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared
    return shared / union if union > 0 else 0.0


def assign(cost: np.ndarray) -> list[tuple[int, int]]:
    """Pairs (row, column) of the cheapest one-to-one assignment; min(rows, columns) pairs, in order of the row.

    The Hungarian method with shortest augmenting paths, O(n^3).
    """
    if cost.shape[0] > cost.shape[1]:
        return sorted((row, column) for column, row in assign(cost.T))
    rows, columns = cost.shape
    # column 0 is a start that no row keeps; `owner` holds 1-based rows, 0 for none
    u, v = np.zeros(rows + 1), np.zeros(columns + 1)
    owner = np.zeros(columns + 1, dtype=int)
    for row in range(1, rows + 1):
        owner[0], j = row, 0
        slack = np.full(columns + 1, np.inf)
        came = np.zeros(columns + 1, dtype=int)
        done = np.zeros(columns + 1, dtype=bool)
        while True:
            done[j] = True
            reduced = cost[owner[j] - 1] - u[owner[j]] - v[1:]
            better = ~done[1:] & (reduced < slack[1:])
            slack[1:][better] = reduced[better]
            came[1:][better] = j
            nearest = int(np.where(done[1:], np.inf, slack[1:]).argmin()) + 1
            step = slack[nearest]
            u[owner[done]] += step
            v[done] -= step
            slack[~done] -= step
            j = nearest
            if owner[j] == 0:
                break
        while j:
            owner[j] = owner[came[j]]
            j = came[j]
    return sorted((int(owner[j]) - 1, j - 1) for j in range(1, columns + 1) if owner[j])
