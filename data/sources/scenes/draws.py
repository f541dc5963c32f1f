"""Draws: the random stream of one scene, with whole arrays at a time."""

from __future__ import annotations

import math

import numpy as np

from gnomon.data.sources.diagrams.dice import Dice


class Draws(Dice):
    """Dice that also fill arrays; like them, a pure function of (seed, split, index)."""

    def units(self, *shape: int) -> np.ndarray:
        """Numbers in [0, 1)."""
        words = self._bits.random_raw(math.prod(shape))
        return ((words >> np.uint64(11)) * 2.0**-53).reshape(shape)

    def spread(self, low: float, high: float, *shape: int) -> np.ndarray:
        return low + (high - low) * self.units(*shape)

    def octets(self, count: int) -> np.ndarray:
        """(count,) uint8."""
        words = self._bits.random_raw(-(-count // 8))
        # the same bytes on a big-endian machine
        return words.astype("<u8").view(np.uint8)[:count]

    def directions(self, *shape: int) -> np.ndarray:
        """(..., 3) unit vectors, uniform on the sphere."""
        z, angle = self.spread(-1, 1, *shape), self.spread(0, 2 * math.pi, *shape)
        ring = np.sqrt(1 - z * z)
        return np.stack([ring * np.cos(angle), ring * np.sin(angle), z], axis=-1)

    def rotation(self) -> np.ndarray:
        """(3,3), uniform over all rotations: a random unit quaternion (Shoemake)."""
        u, a, b = self.unit(), 2 * math.pi * self.unit(), 2 * math.pi * self.unit()
        p, q = math.sqrt(1 - u), math.sqrt(u)
        x, y, z, w = p * math.sin(a), p * math.cos(a), q * math.sin(b), q * math.cos(b)
        return np.array([
            [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
            [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
            [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
        ])  # fmt: skip
