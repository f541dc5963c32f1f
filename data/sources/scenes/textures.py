"""Textures: patterns on solids, and scale-free noise for walls."""

from __future__ import annotations

from functools import cache

import numpy as np

PATTERNS = ("plain", "checker", "stripes", "noise", "seams")
PLAIN, CHECKER, STRIPES, NOISE, SEAMS = range(5)

# Darkest factor of a pattern.
_DARK = 0.55
_SIDE = 512


def paint(pattern: int, p: np.ndarray, cycles: np.ndarray, extent: np.ndarray) -> np.ndarray | float:
    """(F,) factor on the albedo at local points p (3,F), each coordinate within -1 and 1."""
    if pattern == CHECKER:
        return _two((_cells(p, cycles).sum(0) & 1) == 0)
    if pattern == STRIPES:
        return _two((_cells(p[2:], cycles)[0] & 1) == 0)
    if pattern == NOISE:
        i, j, k = _cells(p, 2 * cycles)
        return _DARK + (1 - _DARK) * _table()[(i * 73 + j * 179) % _SIDE, (k * 283 + i * 37) % _SIDE]
    if pattern == SEAMS:
        # on a box's face, the second largest coordinate says how close its edge is
        return _two(np.sort(np.abs(p) / extent, axis=0)[1] < 0.85)
    return 1.0


def _cells(p: np.ndarray, cycles: np.ndarray) -> np.ndarray:
    # shifted, so that no boundary runs through the middle
    return np.floor(p * cycles + 0.25).astype(np.int64)


def _two(bright: np.ndarray) -> np.ndarray:
    return np.where(bright, 1.0, _DARK)


@cache
def _table() -> np.ndarray:
    """(_SIDE,_SIDE) independent numbers in [0, 1)."""
    words = np.random.Philox(key=1).random_raw(_SIDE * _SIDE)
    return ((words >> np.uint64(40)) * 2.0**-24).astype(np.float32).reshape(_SIDE, _SIDE)


def noise(rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Factors of a wall at texture coordinates, which repeat after 1."""
    field = _octaves()
    i, j = (rows * _SIDE).astype(np.int32) & (_SIDE - 1), (columns * _SIDE).astype(np.int32) & (_SIDE - 1)
    return np.take(field, i * _SIDE + j, mode="wrap")


@cache
def _octaves() -> np.ndarray:
    """Periodic 1/f noise, equally strong at every scale: no detail has a size of its own."""
    frequency = np.hypot(np.fft.fftfreq(_SIDE)[:, None], np.fft.fftfreq(_SIDE)[None, :])
    frequency[0, 0] = np.inf
    field = np.fft.ifft2(np.fft.fft2(_table()) / frequency).real
    ranks = field.ravel().argsort().argsort().reshape(field.shape) / field.size
    return (_DARK + (1 - _DARK) * ranks).astype(np.float32)
