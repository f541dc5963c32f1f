"""What exact depth, or two pictures with their cameras, say about a scene, without what the generator knows.

Both find the middle of each object from its pixels alone and then reason about the middles. Two kinds of tasks are not
about middles: what is counted are the true instance numbers, and motion is read from the true cameras.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import permutations

import numpy as np

from gnomon.data.sample import Geometry, Sample

Centres = dict[int, np.ndarray]

# Fewer pixels than this do not say where an object's middle is.
_LEAST = 5


def by_depth(geometry: Geometry) -> Centres:
    """Middles in the first camera's frame: from the surface that the first view shows, half a radius further back."""
    lens, depth, found = geometry.intrinsics[0], geometry.depth[0], {}
    for number in np.unique(geometry.instances[0])[1:]:
        v, u = np.nonzero(geometry.instances[0] == number)
        rays = np.linalg.solve(lens, np.stack([u + 0.5, v + 0.5, np.ones(len(u))]))
        surface = (rays * depth[v, u]).mean(axis=1)
        directions = rays / np.linalg.norm(rays, axis=0)
        middle = directions.mean(axis=1) / np.linalg.norm(directions.mean(axis=1))
        reach = np.arccos(np.clip(middle @ directions, -1, 1)).max()
        found[int(number)] = surface * (1 + 0.6 * np.sin(reach))
    return found


def by_two_views(geometry: Geometry) -> Centres:
    """Middles in the first camera's frame: where the rays through an object's middle pass closest, in two views."""
    found = {}
    for number in np.unique(geometry.instances[0])[1:]:
        area = (geometry.instances == number).sum(axis=(1, 2))
        # the other view that shows most of it
        other = 1 + int(area[1:].argmax())
        if area[other] >= _LEAST:
            normal, target = np.zeros((3, 3)), np.zeros(3)
            for view in (0, other):
                camera, ray = geometry.extrinsics[view], _ray(geometry, view, int(number))
                eye = -camera[:, :3].T @ camera[:, 3]
                off = np.eye(3) - np.outer(ray, ray)
                normal, target = normal + off, target + off @ eye
            world = np.linalg.solve(normal, target)
            found[int(number)] = geometry.extrinsics[0, :, :3] @ world + geometry.extrinsics[0, :, 3]
    return found


def _ray(geometry: Geometry, view: int, number: int) -> np.ndarray:
    """World direction of the middle of an object's pixels."""
    v, u = np.nonzero(geometry.instances[view] == number)
    ray = geometry.extrinsics[view, :, :3].T @ np.linalg.solve(
        geometry.intrinsics[view], [u.mean() + 0.5, v.mean() + 0.5, 1]
    )
    return ray / np.linalg.norm(ray)


def answer(sample: Sample, middles: Callable[[Geometry], Centres]) -> str | float | None:
    """In words, or a number; None where an object was not found, and for tasks that are not about single objects."""
    task, geometry = sample.meta["task"], sample.geometry
    if task == "count":
        return float(len(np.unique(geometry.instances)) - 1)
    if task.startswith("motion"):
        return _motion(task, geometry)
    if task == "mirror":
        return None
    found = middles(geometry)
    asked = sample.meta["objects"][: sample.meta["asked"]]
    if any(thing["id"] not in found for thing in asked):
        return None
    at = np.array([found[thing["id"]] for thing in asked])
    names = [thing["name"] for thing in asked]
    away = np.linalg.norm(at, axis=1)
    match task:
        case "nearer":
            return names[away.argmin()]
        case "larger":
            return names[np.argmax([_radius(geometry, thing["id"], d) for thing, d in zip(asked, away)])]
        case "closest":
            return names[np.linalg.norm(at[:3] - at[3], axis=1).argmin()]
        case "distance":
            return float(np.linalg.norm(at[0] - at[1]))
        case "height":
            return float(at[1, 1] - at[0, 1])
        case "depth_order":
            return ", ".join(names[k] for k in min(permutations(range(3)), key=lambda order: list(away[list(order)])))
        case "between":
            off = np.linalg.norm(np.cross(at[2] - at[0], at[1] - at[0])) / np.linalg.norm(at[2] - at[0])
            # half of what a miss is at least
            return "yes" if off < max(_radius(geometry, asked[1]["id"], away[1]), 0.25) else "no"
        case "direction":
            stand, face, other = (complex(p[2], -p[0]) for p in at)
            quarter = int(np.rint(np.angle((other - stand) / (face - stand)) / (np.pi / 2))) % 4
            return ("ahead", "left", "behind", "right")[quarter]
    raise AssertionError(task)


def _radius(geometry: Geometry, number: int, away: float) -> float:
    """How far an object reaches, from its pixels in the first view and how far it is away."""
    v, u = np.nonzero(geometry.instances[0] == number)
    rays = np.linalg.solve(geometry.intrinsics[0], np.stack([u + 0.5, v + 0.5, np.ones(len(u))]))
    rays /= np.linalg.norm(rays, axis=0)
    spread = rays[:, None, :] * rays[:, :, None]
    return away * np.arccos(np.clip(spread.sum(0).min(), -1, 1)) / 2


def _motion(task: str, geometry: Geometry) -> str:
    first, second = geometry.extrinsics[:2]
    if task == "motion_angle":
        trace = np.trace(second[:, :3] @ first[:, :3].T)
        angle = np.degrees(np.arccos(np.clip((trace - 1) / 2, -1, 1)))
        return "less than 5 degrees" if angle < 5 else "5 to 11 degrees" if angle < 11 else "more than 11 degrees"
    moved = first[:, :3] @ (-second[:, :3].T @ second[:, 3]) + first[:, 3]
    axis = int(np.abs(moved).argmax())
    return (("left", "right"), ("up", "down"), ("backward", "forward"))[axis][int(moved[axis] > 0)]
