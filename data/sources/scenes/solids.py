"""Solids: where rays meet balls, boxes and cans.

Each solid is at the origin of its own frame and just fits into a ball of radius 1: a ball has extent (1,1,1), a box its
half sides, a can (radius, radius, half height) about z. A ray is o + s d; s is left as it is when o and d are scaled
together, so it stays the z-depth that it was in camera space. Shapes: F rays.
"""

from __future__ import annotations

import numpy as np

KINDS = ("ball", "box", "can")
BALL, BOX, CAN = range(3)

# Nearer than this is behind the camera or on its lens.
NEAREST = 1e-4


def meet(kind: int, o: np.ndarray, d: np.ndarray, extent: np.ndarray) -> np.ndarray:
    """(F,) smallest s above NEAREST at which the rays o, d (3,F) enter a solid of that extent (3,F); inf for a miss."""
    with np.errstate(divide="ignore", invalid="ignore"):
        if kind == BALL:
            near, far = _round(o, d, 3, 1.0)
        elif kind == BOX:
            near, far = _slab(o[0], d[0], extent[0])
            for axis in (1, 2):
                low, high = _slab(o[axis], d[axis], extent[axis])
                near, far = np.maximum(near, low), np.minimum(far, high)
        else:
            near, far = _round(o, d, 2, extent[0])
            low, high = _slab(o[2], d[2], extent[2])
            near, far = np.maximum(near, low), np.minimum(far, high)
        # comparisons with nan, a ray that runs within a face, are misses
        return np.where((near < far) & (near > NEAREST), near, np.inf)


def normals(kind: int, p: np.ndarray, extent: np.ndarray) -> np.ndarray:
    """(3,F) outward unit normals at points p (3,F) of the surface."""
    if kind == BALL:
        return p / np.sqrt(np.einsum("if,if->f", p, p))
    if kind == BOX:
        axis = np.abs(p / extent).argmax(0)
        return np.where(np.arange(3)[:, None] == axis, np.sign(p), 0.0)
    ring = np.hypot(p[0], p[1])
    lid = np.abs(p[2]) / extent[2] > ring / extent[0]
    side = p / ring
    return np.where(lid, np.stack([0 * ring, 0 * ring, np.sign(p[2])]), np.stack([side[0], side[1], 0 * ring]))


def _round(o: np.ndarray, d: np.ndarray, axes: int, radius: np.ndarray | float) -> tuple[np.ndarray, np.ndarray]:
    """Where a line is within `radius` of the origin, by its first two or three axes."""
    o, d = o[:axes], d[:axes]
    a, b, c = (np.einsum("if,if->f", u, v) for u, v in ((d, d), (o, d), (o, o)))
    c -= radius * radius
    root = np.sqrt(b * b - a * c)
    return (-b - root) / a, (-b + root) / a


def _slab(o: np.ndarray, d: np.ndarray, half: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    one, two = (-half - o) / d, (half - o) / d
    return np.minimum(one, two), np.maximum(one, two)
