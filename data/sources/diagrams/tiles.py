"""Tiles: places for several separate things in one image, of random size and position, never overlapping."""

from __future__ import annotations

import math

from gnomon.data.sources.diagrams.dice import Dice


def tiles(
    dice: Dice, count: int, room: tuple[float, float], low: float = 0.6, high: float = 1.0
) -> list[tuple[complex, float]]:
    """`count` squares (centre, side), one in each of as many cells of a grid, filling low to high of their cells."""
    wide, tall = room
    # The grid whose cells come nearest to squares.
    columns = min(range(1, count + 1), key=lambda c: abs(math.log((wide / c) / (tall / math.ceil(count / c)))))
    rows = math.ceil(count / columns)
    cell_wide, cell_tall = (wide - 0.06) / columns, (tall - 0.06) / rows
    found = []
    for cell in dice.sample(range(columns * rows), count):
        free = min(cell_wide, cell_tall) - 0.05
        side = free * dice.between(low, high)
        x = 0.03 + (cell % columns) * cell_wide + 0.025 + side / 2 + dice.unit() * (cell_wide - 0.05 - side)
        y = 0.03 + (cell // columns) * cell_tall + 0.025 + side / 2 + dice.unit() * (cell_tall - 0.05 - side)
        found.append((complex(x, y), side))
    return found
