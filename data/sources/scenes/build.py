"""Build: from what was chosen in the first camera's frame to a scene in the world, with wall, light and backdrop."""

from __future__ import annotations

import numpy as np

from gnomon.data.cameras import compose, inverse
from gnomon.data.sources.scenes.draws import Draws
from gnomon.data.sources.scenes.layout import Layout, Setting
from gnomon.data.sources.scenes.scene import Scene, Solids, Wall
from gnomon.data.sources.scenes.tasks.base import Chosen

# How often there is a wall, how much it may be slanted (tangent), and how far behind everything it is.
_WALLS, _SLANT, _BEHIND = 0.7, 0.2, (1.2, 1.6)


def build(draws: Draws, layout: Layout, chosen: Chosen, setting: Setting) -> tuple[Scene, list[int]]:
    """The scene, and the instance number of each object: in random order, so that they tell nothing."""
    world = np.concatenate([draws.rotation(), draws.spread(-1, 1, 3, 1)], axis=1)
    # the origin is near the middle of the scene
    world = compose(world, np.array([[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, -setting.middle]]))
    wall = _wall(draws, layout, world, setting) if draws.chance(_WALLS) else None
    # from somewhere behind the cameras, so that what they see is not in the dark
    light = draws.directions() * [1, 1, 0.5] - [0, 0, 1]
    backdrop = draws.between(0.35, 0.75) + draws.spread(-0.06, 0.06, 3)
    # drawn for all looks, whether they are there or not: what comes after must not depend on the answer
    numbers = draws.shuffled(range(1, len(layout.looks) + 1))
    numbers = np.argsort(np.argsort(numbers[: len(chosen.looks)])) + 1
    scene = Scene(
        solids=_solids(chosen, numbers, world),
        wall=wall,
        light=world[:, :3] @ (light / np.linalg.norm(light)),
        backdrop=backdrop,
        intrinsics=layout.intrinsics,
        extrinsics=compose(chosen.cameras, inverse(world)),
    )
    return scene, numbers.tolist()


def _solids(chosen: Chosen, numbers: np.ndarray, world: np.ndarray) -> Solids:
    centres = chosen.centres @ world[:, :3].T + world[:, 3]
    turns = [world[:, :3] @ look.turn for look in chosen.looks]
    parts = []
    for look, centre, radius, turn, number in zip(chosen.looks, centres, chosen.radii, turns, numbers):
        offsets, share = (np.zeros((1, 3)), 1.0) if look.cubes is None else _cubes(look.cubes)
        for offset in offsets:
            parts.append((
                look.kind, centre + radius * turn @ offset, radius * share, turn, look.extent, number, look.colour,
                look.pattern, look.cycles,
            ))  # fmt: skip
    return Solids(*(np.array(column) for column in zip(*parts)))


def _cubes(cubes: np.ndarray) -> tuple[np.ndarray, float]:
    """Centres of the cubes of a figure of radius 1, and the radius of each."""
    middle = cubes - (cubes.min(axis=0) + cubes.max(axis=0)) / 2
    reach = np.linalg.norm(np.abs(middle) + 0.5, axis=1).max()
    return middle / reach, 0.5 * 3**0.5 / reach


def _wall(draws: Draws, layout: Layout, world: np.ndarray, setting: Setting) -> Wall:
    """Slanted at random, behind everything in the first view; how far says nothing about what is in front of it."""
    normal = np.array([*draws.spread(-_SLANT, _SLANT, 2), 1.0])
    normal /= np.linalg.norm(normal)
    (focal, _, cx), (_, _, cy), _ = layout.intrinsics
    corners = np.array([[x, y, 1.0] for x in (-cx / focal, cx / focal) for y in (-cy / focal, cy / focal)])
    # where the wall is nearest, it is this far away along z
    nearest = draws.between(*_BEHIND) * setting.distances[1]
    offset = nearest * float((corners @ normal).max())
    across = np.cross([0.0, 1.0, 0.0], normal)
    across /= np.linalg.norm(across)
    turn = draws.between(0, 2 * np.pi)
    along = np.cross(normal, across)
    axes = np.array([np.cos(turn) * across + np.sin(turn) * along, np.cos(turn) * along - np.sin(turn) * across])
    rotation = world[:, :3]
    origin = rotation @ (normal * offset + draws.spread(-1, 1, 2) * offset @ axes) + world[:, 3]
    outward = rotation @ normal
    scale = offset * draws.between(1.0, 2.5)
    return Wall(outward, offset + float(outward @ world[:, 3]), axes @ rotation.T, origin, scale)
