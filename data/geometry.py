"""Geometry: is what a sample says about its scene usable, seen from another camera, and as bytes."""

from __future__ import annotations

import io
import zipfile
from dataclasses import fields, replace

import numpy as np

from gnomon.data.cameras import CONVENTIONS, OURS, Convention, compose, convert, inverse, project, unproject
from gnomon.data.errors import BadSample
from gnomon.data.image import load
from gnomon.data.sample import Geometry, Image

ARRAYS = tuple(field.name for field in fields(Geometry) if field.name != "views")

# Shapes after the first axis; H and W stand for the views' own.
_SHAPES: dict[str, tuple[int | str, ...]] = {
    "intrinsics": (3, 3),
    "extrinsics": (3, 4),
    "depth": ("H", "W"),
    "normals": ("H", "W", 3),
    "points": ("H", "W", 3),
    "instances": ("H", "W"),
}
_ORTHONORMAL = 1e-3
# A point belongs to a pixel when it is no further away than this, relatively.
_CLOSE = 0.02
# Pixels of a view that are looked at to tell conventions apart.
_PROBES = 500


def check(geometry: Geometry, *, name: str = "sample", max_views: int | None = None) -> None:
    """Refuse, in one line that names the remedy, whatever a geometry encoder could not use."""
    count = len(geometry.views)
    if not count:
        raise BadSample(f"{name}: geometry has no view; give at least 1, or no geometry at all")
    if max_views is not None and count > max_views:
        raise BadSample(f"{name}: {count} views are more than max_views {max_views}; leave some out or raise max_views")
    sizes = [load(view, name=f"{name}, view {k}").shape[:2] for k, view in enumerate(geometry.views)]
    for k, size in enumerate(sizes):
        if size != sizes[0]:
            raise BadSample(
                f"{name}: view {k} is {size[0]}x{size[1]} but view 0 is {sizes[0][0]}x{sizes[0][1]}; "
                "resize all views to one size, and the intrinsics with them"
            )
    sides = dict(zip("HW", sizes[0]))
    for field in ARRAYS:
        _check_array(getattr(geometry, field), field, (count, *(sides.get(n, n) for n in _SHAPES[field])), name)
    if geometry.depth is not None and (geometry.depth < 0).any():
        raise BadSample(f"{name}: depth goes down to {geometry.depth.min():g}; depth is along +z, 0 where unknown")
    if geometry.intrinsics is not None:
        _check_intrinsics(geometry.intrinsics, name)
    if geometry.extrinsics is not None:
        _check_rotations(geometry.extrinsics, name)
        _check_convention(geometry, name)


def relative(geometry: Geometry, *, view: int = 0) -> Geometry:
    """The same with that view's camera frame as the world: its extrinsics become [I|0]."""
    if geometry.extrinsics is None:
        raise ValueError("the geometry has no extrinsics to be relative to; give the cameras")
    frame = geometry.extrinsics[view]
    moved = {"extrinsics": compose(geometry.extrinsics, inverse(frame))}
    if geometry.points is not None:
        places = (geometry.points @ frame[:, :3].T + frame[:, 3]).astype(geometry.points.dtype)
        # what is not there has no place in any frame
        moved["points"] = np.where((geometry.points != 0).any(-1, keepdims=True), places, 0)
    if geometry.normals is not None:
        moved["normals"] = (geometry.normals @ frame[:, :3].T).astype(geometry.normals.dtype)
    return replace(geometry, **moved)


def fits(geometry: Geometry) -> dict[Convention, float]:
    """How well each convention explains the scene: the share of pixels that it puts where the other data say.

    With point maps: whose point projects to the pixel itself. Without: whose place in space another view's depth
    confirms. Empty when there is too little to tell.
    """
    if geometry.intrinsics is None or geometry.extrinsics is None:
        return {}
    if geometry.points is None and (geometry.depth is None or len(geometry.views) < 2):
        return {}
    return {name: _agreement(geometry, convert(geometry.extrinsics, source=name)) for name in CONVENTIONS}


def pack(geometry: Geometry) -> bytes:
    """The arrays as a compressed .npz: no views, no points where depth and cameras are, normals in half precision."""
    kept = {name: getattr(geometry, name) for name in ARRAYS if getattr(geometry, name) is not None}
    if _placed(geometry):
        kept.pop("points", None)
    if geometry.normals is not None:
        kept["normals"] = geometry.normals.astype(np.float16)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **kept)
    return buffer.getvalue()


def unpack(content: bytes, views: tuple[Image, ...], *, name: str = "geometry") -> Geometry:
    """What `pack` made, with its views; nothing in the file is ever executed."""
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
            found = Geometry(views, **{key: arrays[key] for key in ARRAYS if key in arrays})
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise BadSample(f"{name}: is no .npz of plain arrays ({error}); write it again") from error
    if found.normals is not None:
        found = replace(found, normals=found.normals.astype(np.float32))
    return replace(found, points=points(found)) if found.points is None and _placed(found) else found


def points(geometry: Geometry) -> np.ndarray:
    """(V,H,W,3) world points of depth and cameras; 0 where there is nothing."""
    cameras = zip(geometry.depth, geometry.intrinsics, geometry.extrinsics)
    found = np.stack([unproject(*camera) for camera in cameras]).astype(np.float32)
    return np.where(geometry.depth[..., None] > 0, found, 0)


def _placed(geometry: Geometry) -> bool:
    """Are there depth and cameras for all views?"""
    return all(getattr(geometry, name) is not None for name in ("depth", "intrinsics", "extrinsics"))


def _check_array(array: np.ndarray | None, field: str, shape: tuple, name: str) -> None:
    if array is None:
        return
    if array.shape != shape:
        raise BadSample(f"{name}: {field} has shape {array.shape} but the views make it {shape}; correct one of them")
    bad = np.argwhere(~np.isfinite(array))
    if len(bad):
        where = tuple(int(k) for k in bad[0])
        raise BadSample(f"{name}: {field}{list(where)} is {array[where]}; set it to 0 where nothing is known")


def _check_intrinsics(intrinsics: np.ndarray, name: str) -> None:
    for k, matrix in enumerate(intrinsics):
        (fx, _, _), (skewed, fy, _), last = matrix
        if min(fx, fy) <= 0 or skewed or tuple(last) != (0, 0, 1):
            raise BadSample(
                f"{name}: intrinsics of view {k} are singular or no pinhole (fx {fx:g}, fy {fy:g}, last row "
                f"{last.tolist()}); use [[fx, 0, cx], [0, fy, cy], [0, 0, 1]] in pixels with fx, fy > 0"
            )


def _check_rotations(extrinsics: np.ndarray, name: str) -> None:
    rotation = extrinsics[..., :3]
    for k, matrix in enumerate(rotation):
        error = float(np.abs(matrix @ matrix.T - np.eye(3)).max())
        determinant = float(np.linalg.det(matrix))
        if error > _ORTHONORMAL or determinant < 0:
            raise BadSample(
                f"{name}: extrinsics of view {k} are no rotation (|R R^T - I| = {error:.2g}, det R = "
                f"{determinant:.3g}, limit {_ORTHONORMAL:g} and +1); pass [R|t] camera-from-world, without scale or "
                "mirroring"
            )


def _check_convention(geometry: Geometry, name: str) -> None:
    shares = fits(geometry)
    if not shares:
        return
    best = max(shares, key=lambda key: shares[key])
    # depth and cameras may be noisy, so only a clearly better explanation is held against them
    if best != OURS and shares[best] > 0.4 and shares[OURS] < 0.75 * shares[best]:
        raise BadSample(
            f"{name}: extrinsics do not fit the scene as {OURS!r} (camera-from-world, x right, y down, z forward), but "
            f"do as {best!r}; pass gnomon.data.cameras.convert(extrinsics, source={best!r})"
        )


def _agreement(geometry: Geometry, extrinsics: np.ndarray) -> float:
    hits = total = 0
    for k, (lens, camera) in enumerate(zip(geometry.intrinsics, extrinsics)):
        if geometry.points is not None:
            rows, columns = _probes((geometry.points[k] != 0).any(-1))
            pixel, z = project(geometry.points[k][rows, columns], lens, camera)
            off = np.abs(pixel - np.stack([columns, rows], axis=-1) - 0.5).max(-1)
            hits, total = hits + int(((off < 1) & (z > 0)).sum()), total + len(rows)
            continue
        rows, columns = _probes(geometry.depth[k] > 0)
        places = unproject(geometry.depth[k], lens, camera)[rows, columns]
        for other in range(len(extrinsics)):
            if other != k:
                hits += _confirmed(places, geometry.depth[other], geometry.intrinsics[other], extrinsics[other])
                total += len(rows)
    return hits / total if total else 0.0


def _probes(known: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns of some known pixels, spread evenly."""
    rows, columns = np.nonzero(known)
    step = max(1, len(rows) // _PROBES)
    return rows[::step], columns[::step]


def _confirmed(places: np.ndarray, depth: np.ndarray, lens: np.ndarray, camera: np.ndarray) -> int:
    """How many points lie where the depth says."""
    pixel, z = project(places, lens, camera)
    height, width = depth.shape
    inside = (z > 0) & (pixel >= 0).all(-1) & (pixel[:, 0] < width) & (pixel[:, 1] < height)
    column, row = pixel[inside].astype(int).T
    return int((np.abs(depth[row, column] - z[inside]) < _CLOSE * z[inside]).sum())
