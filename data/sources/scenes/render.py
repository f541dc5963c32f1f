"""Rays of all views against all solids in one batch, without a loop over either.

A solid is met only by the rays of the rectangle that its bounding ball can cover in a view; the pixels of all
rectangles ("fragments") are laid end to end and intersected together, kind by kind. Ray directions are
K^-1 (u+.5, v+.5, 1), so the ray parameter is the z-depth itself.
Shapes: V views of H,W pixels, K solids, F fragments, N rectangles.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from statistics import NormalDist

import numpy as np

from gnomon.data.sample import Geometry
from gnomon.data.sources.scenes import solids, textures
from gnomon.data.sources.scenes.draws import Draws
from gnomon.data.sources.scenes.scene import Scene, Wall

AMBIENT, DIFFUSE, NOISE = 0.4, 0.6, 0.01

# A wall is not seen at a smaller slope than this (the change of distance to it, per unit of depth).
GRAZING = 0.05


@dataclass(frozen=True)
class Rays:
    """One per pixel of V views: where they start, and their directions as functions of column (W) and row (H)."""

    eye: np.ndarray
    rotation: np.ndarray
    x: np.ndarray
    y: np.ndarray

    @classmethod
    def of(cls, scene: Scene, size: tuple[int, int]) -> Rays:
        (fx, _, cx), (_, fy, cy), _ = scene.intrinsics
        rotation = scene.extrinsics[:, :, :3]
        eye = -np.einsum("vij,vi->vj", rotation, scene.extrinsics[:, :, 3])
        x, y = (np.arange(size[1]) + 0.5 - cx) / fx, (np.arange(size[0]) + 0.5 - cy) / fy
        return cls(eye.astype(np.float32), rotation, x.astype(np.float32), y.astype(np.float32))

    def along(self, direction: np.ndarray) -> np.ndarray:
        """(V,H,W) component of all rays in a world direction (3,)."""
        a, b, c = (self.rotation @ direction).T.astype(np.float32)[:, :, None]
        return (a * self.x)[:, None, :] + (b * self.y + c)[:, :, None]


def render(scene: Scene, size: tuple[int, int], draws: Draws) -> Geometry:
    """All views with everything that is known about each pixel; `draws` give the pixel noise."""
    rays, shape = Rays.of(scene, size), (len(scene.extrinsics), *size)
    pixels = math.prod(shape)
    # planes of three channels until the end: numpy is slow along an axis of length 3
    colour, normal = np.empty((3, pixels), np.float32), np.zeros((3, pixels), np.float32)
    instance = np.zeros(pixels, np.uint8)
    tint = (255 * scene.backdrop).astype(np.float32)[:, None]
    if scene.wall is None:
        depth = np.full(pixels, np.inf, np.float32)
        colour[:] = tint
    else:
        depth, shade = _wall(scene.wall, rays, scene.light)
        np.multiply(tint, shade, out=colour)
        normal[:] = -scene.wall.normal[:, None]
    _shade(scene, _cast(scene, size, rays.eye, depth), colour, normal, instance)
    empty = np.isinf(depth)
    depth[empty] = 0
    depth = depth.reshape(shape)
    points = np.empty((*shape, 3), np.float32)
    for axis, direction in enumerate(np.eye(3)):
        points[..., axis] = rays.eye[:, axis, None, None] + depth * rays.along(direction)
    if empty.any():
        points.reshape(-1, 3)[empty] = 0
        normal[:, empty] = 0
    colour += np.take(_gauss(), draws.octets(colour.size)).reshape(colour.shape)
    np.clip(np.rint(colour, out=colour), 0, 255, out=colour)
    return Geometry(
        views=tuple(_pixels(colour.astype(np.uint8), shape)),
        intrinsics=np.repeat(scene.intrinsics[None], len(depth), axis=0),
        extrinsics=scene.extrinsics,
        depth=depth,
        normals=_pixels(normal, shape),
        points=points,
        instances=instance.reshape(shape),
    )


def _pixels(planes: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
    """(V,H,W,3) from (3,V*H*W)."""
    out = np.empty((*shape, 3), planes.dtype)
    for channel, plane in enumerate(planes):
        out[..., channel] = plane.reshape(shape)
    return out


def _wall(wall: Wall, rays: Rays, light: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Depth and brightness (V*H*W,); the depth is inf where a very wide picture sees past the wall."""
    slope = rays.along(wall.normal)
    distance = (wall.offset - rays.eye @ wall.normal).astype(np.float32)
    depth = distance[:, None, None] / np.maximum(slope, np.float32(GRAZING))
    start = ((rays.eye - wall.origin) @ wall.axes.T / wall.scale).astype(np.float32)
    rows, columns = (
        start[:, k, None, None] + depth * rays.along(axis) for k, axis in enumerate(wall.axes / wall.scale)
    )
    shade = AMBIENT + DIFFUSE * max(0.0, float(-wall.normal @ light))
    depth[slope < GRAZING] = np.inf
    return depth.ravel(), shade * textures.noise(rows.ravel(), columns.ravel())


@dataclass(frozen=True)
class Fragments:
    """Pixels of rectangles, F of them, sorted by the kind of their solid; `ends` says where each kind begins and ends.

    pixel    (F,)     index into the buffers      solid  (F,)    which one
    point    (3,F)    in the solid's own frame    extent  (3,F)  of the solid
    """

    pixel: np.ndarray
    solid: np.ndarray
    point: np.ndarray
    extent: np.ndarray
    ends: np.ndarray


def _cast(scene: Scene, size: tuple[int, int], eye: np.ndarray, depth: np.ndarray) -> Fragments:
    """Those that are in the picture; the depth buffer is brought up to date."""
    all_of = scene.solids
    view, which, left, top, wide, tall = _rectangles(scene, size)
    area = wide * tall

    def spread(each: np.ndarray) -> np.ndarray:
        """What is known of each rectangle, for its fragments; they are numbered row by row."""
        return np.repeat(each, area, axis=-1)

    row, column = np.divmod(np.arange(area.sum()) - spread(np.cumsum(area) - area), spread(wide))
    row += spread(top)
    column += spread(left)
    pixel = (spread(view) * size[0] + row) * size[1] + column
    (fx, _, cx), (_, fy, cy), _ = scene.intrinsics
    # from camera space into each solid's own frame, in units of its radius
    inward = np.einsum("nji,nkj->kin", all_of.turn[which], scene.extrinsics[view, :, :3]) / all_of.radius[which]
    d = spread(inward[0]) * ((column + 0.5 - cx) / fx) + spread(inward[1]) * ((row + 0.5 - cy) / fy) + spread(inward[2])
    o = spread(np.einsum("nji,nj->in", all_of.turn[which], eye[view] - all_of.centre[which]) / all_of.radius[which])
    extent = spread(all_of.extent[which].T)
    ends = np.cumsum([0, *(area[all_of.kind[which] == kind].sum() for kind in range(len(solids.KINDS)))])
    s = np.concatenate([
        solids.meet(kind, o[:, a:b], d[:, a:b], extent[:, a:b]) for kind, (a, b) in enumerate(pairwise(ends))
    ])  # fmt: skip
    # as the depth buffer has it, so that the two can be compared
    s = s.astype(np.float32)
    hit = np.flatnonzero(s < np.inf)
    np.minimum.at(depth, pixel[hit], s[hit])
    seen = hit[s[hit] == depth[pixel[hit]]]
    point = np.take(o, seen, axis=1) + s[seen] * np.take(d, seen, axis=1)
    ends = np.searchsorted(seen, ends)
    return Fragments(pixel[seen], spread(which)[seen], point, np.take(extent, seen, axis=1), ends)


def _shade(scene: Scene, found: Fragments, colour: np.ndarray, normal: np.ndarray, instance: np.ndarray) -> None:
    all_of, of = scene.solids, found.solid
    parts = enumerate(pairwise(found.ends))
    outward = [solids.normals(kind, found.point[:, a:b], found.extent[:, a:b]) for kind, (a, b) in parts]
    outward = np.concatenate(outward, axis=1)
    facing = np.take(np.einsum("nij,i->jn", all_of.turn, scene.light), of, axis=1)
    shade = AMBIENT + DIFFUSE * np.maximum(0, np.einsum("if,if->f", outward, facing))
    pattern = all_of.pattern[of]
    for kind in np.unique(all_of.pattern):
        some = np.flatnonzero(pattern == kind)
        point, extent = (np.take(each, some, axis=1) for each in (found.point, found.extent))
        shade[some] *= textures.paint(kind, point, all_of.cycles[of[some]], extent)
    tint = np.take(255 * all_of.colour.T, of, axis=1) * shade
    world = np.einsum("ijf,jf->if", np.take(all_of.turn.transpose(1, 2, 0), of, axis=2), outward)
    for channel in range(3):
        colour[channel, found.pixel] = tint[channel]
        normal[channel, found.pixel] = world[channel]
    instance[found.pixel] = all_of.instance[of]


def _rectangles(scene: Scene, size: tuple[int, int]) -> tuple[np.ndarray, ...]:
    """View, solid, left, top, width, height (N,) of every part of an image that a solid can cover, sorted by kind."""
    kind, radius = scene.solids.kind, scene.solids.radius
    rotation, shift = scene.extrinsics[:, :, :3], scene.extrinsics[:, :, 3]
    at = np.einsum("vij,kj->ivk", rotation, scene.solids.centre) + shift.T[:, :, None]
    (fx, _, cx), (_, fy, cy), _ = scene.intrinsics
    left, right = _span(at[0], at[2], radius, fx, cx, size[1])
    top, bottom = _span(at[1], at[2], radius, fy, cy, size[0])
    view, which = np.nonzero((right > left) & (bottom > top))
    order = np.argsort(kind[which], kind="stable")
    view, which = view[order], which[order]
    corner = left[view, which], top[view, which]
    return view, which, *corner, right[view, which] - corner[0], bottom[view, which] - corner[1]


def _span(
    across: np.ndarray, z: np.ndarray, radius: np.ndarray, focal: float, middle: float, size: int
) -> tuple[np.ndarray, np.ndarray]:
    """First pixel and the one after the last, along one side of the image, of balls at (across, z)."""
    angle = np.arctan2(across, z)
    half = np.arcsin(np.minimum(1, radius / np.hypot(across, z)))
    low, high = (np.clip(angle + sign * half, -1.55, 1.55) for sign in (-1, 1))
    first, last = (np.clip(focal * np.tan(edge) + middle, 0, size) for edge in (low, high))
    # behind the camera both edges are past a right angle; then nothing is left between them
    return np.floor(first).astype(np.int64), np.where(low < high, np.ceil(last), 0).astype(np.int64)


@cache
def _gauss() -> np.ndarray:
    """256 equally likely values of the pixel noise, in units of a uint8."""
    normal = NormalDist(0, 255 * NOISE)
    return np.array([normal.inv_cdf((k + 0.5) / 256) for k in range(256)], np.float32)
