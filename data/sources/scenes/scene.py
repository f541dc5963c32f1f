"""Scene: solids, a wall, a light and cameras, all in one world frame; what a renderer needs and nothing more.

Cameras as everywhere in gnomon (see data/cameras.py): x right, y down, z forward, extrinsics camera-from-world.
Shapes: K solids, V views.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Solids:
    """
    kind      (K,) int          solids.KINDS
    centre    (K,3)             world
    radius    (K,)              of the ball that it just fits into
    turn      (K,3,3)           world-from-local
    extent    (K,3)             as in solids.py, in units of the radius
    instance  (K,) int          number of the object that it is a part of, from 1
    colour    (K,3)             albedo, 0 to 1
    pattern   (K,) int          textures.PATTERNS
    cycles    (K,)              of the pattern across the solid: its texture scales with its size
    """

    kind: np.ndarray
    centre: np.ndarray
    radius: np.ndarray
    turn: np.ndarray
    extent: np.ndarray
    instance: np.ndarray
    colour: np.ndarray
    pattern: np.ndarray
    cycles: np.ndarray


@dataclass(frozen=True)
class Wall:
    """The plane normal . x = offset behind everything, with scale-free noise on it.

    axes     (2,3)   directions of the texture's rows and columns on it
    origin   (3,)    world point of the texture's middle
    scale    float   world length of a texture unit: in proportion to the distance, of which it so says nothing
    """

    normal: np.ndarray
    offset: float
    axes: np.ndarray
    origin: np.ndarray
    scale: float


@dataclass(frozen=True)
class Scene:
    """
    intrinsics  (3,3)      one lens for all views
    extrinsics  (V,3,4)    camera-from-world
    light       (3,)       unit vector to the light, which is infinitely far
    backdrop    (3,)       albedo of the wall, or the colour of emptiness where there is no wall
    """

    solids: Solids
    wall: Wall | None
    light: np.ndarray
    backdrop: np.ndarray
    intrinsics: np.ndarray
    extrinsics: np.ndarray
