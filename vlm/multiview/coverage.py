"""Which frames of many see most of a scene.

Paper:   Spatial-MLLM: Boosting MLLM Capabilities in Visual-based Spatial Intelligence. arXiv:2505.23747
Rule:    sure points (confidence above its median and 0.1) fall into cubes, a twentieth of their box's shortest side
         wide; frames are taken greedily, the one that adds most cubes first, until none adds any; in order of time
Differs: where that leaves frames to choose, those farthest from all chosen ones fill up, a rule of our own

Shapes: S frames, H,W pixels.
"""

from __future__ import annotations

import torch
from torch import Tensor

_CUBES = 20
_LEAST = 0.1


def choose(points: Tensor, confidence: Tensor, count: int) -> list[int]:
    """`count` of S frames at most, by points (S,H,W,3) in one frame of reference and their confidence (S,H,W)."""
    frames = len(points)
    if frames <= count:
        return list(range(frames))
    sets, chosen, seen = cubes(points, confidence), [], set()
    while len(chosen) < count:
        gains = [-1 if i in chosen else len(found - seen) for i, found in enumerate(sets)]
        best = max(range(frames), key=gains.__getitem__)
        if gains[best] <= 0:
            break
        chosen.append(best)
        seen |= sets[best]
    while len(chosen) < count:
        far = [min((abs(i - one) for one in chosen), default=frames) for i in range(frames)]
        chosen.append(max(range(frames), key=far.__getitem__))
    return sorted(chosen)


def cubes(points: Tensor, confidence: Tensor) -> list[set[tuple[int, int, int]]]:
    """Those that each frame has sure points in."""
    points, confidence = points.float(), confidence.float()
    there = torch.isfinite(points).all(-1) & torch.isfinite(confidence)
    if not bool(there.any()):
        return [set() for _ in points]
    sure = there & (confidence >= confidence[there].median()) & (confidence > _LEAST)
    if not bool(sure.any()):
        return [set() for _ in points]
    low, high = points[sure].amin(0), points[sure].amax(0)
    sides = high - low
    # points in one plane or on a line have no shortest side
    edge = float(sides[sides > 0].min() if bool((sides > 0).any()) else 1.0) / _CUBES
    places = ((points - low) / edge).floor().long()
    return [set(map(tuple, own[seen].unique(dim=0).tolist())) for own, seen in zip(places, sure, strict=True)]
