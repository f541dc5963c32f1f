"""The renderer against a plain ray tracer, and against what geometry says about any picture."""

import math

import numpy as np
import pytest

from gnomon.data.cameras import project, unproject
from gnomon.data.sources.scenes.draws import Draws
from gnomon.data.sources.scenes.render import render
from gnomon.data.sources.scenes.source import TASKS, Scenes

SIZES = [(112, 112), (60, 96), (130, 48), (48, 560)]


@pytest.fixture(scope="module", params=SIZES, ids=str)
def source(request):
    return Scenes(count=len(TASKS), seed=4, size=request.param)


def slow(scene, view, u, v):
    """Depth and instance of one pixel, solid by solid, in world coordinates: another formula for each shape."""
    rotation, shift = scene.extrinsics[view, :, :3], scene.extrinsics[view, :, 3]
    eye = -rotation.T @ shift
    ray = rotation.T @ np.linalg.inv(scene.intrinsics) @ [u + 0.5, v + 0.5, 1]
    found = [(math.inf, 0)]
    if scene.wall is not None:
        slope = scene.wall.normal @ ray
        found.append(((scene.wall.offset - scene.wall.normal @ eye) / slope if slope > 0.05 else math.inf, 0))
    solids = scene.solids
    for k in range(len(solids.kind)):
        turn, size = solids.turn[k], solids.extent[k] * solids.radius[k]
        centre, number = solids.centre[k], int(solids.instance[k])
        if solids.kind[k] == 0:
            # where the ray passes closest, and half the chord before that
            closest = (centre - eye) @ ray / (ray @ ray)
            off = np.linalg.norm(eye + closest * ray - centre)
            if off < solids.radius[k]:
                found.append((closest - math.sqrt((solids.radius[k] ** 2 - off**2) / (ray @ ray)), number))
            continue
        o, d = turn.T @ (eye - centre), turn.T @ ray
        # every plane face, and of a can also the mantle; a hit must lie within the solid
        cuts = [(sign * size[axis] - o[axis]) / d[axis] for axis in range(3) for sign in (-1, 1)]
        if solids.kind[k] == 2:
            a, b, c = d[0] ** 2 + d[1] ** 2, 2 * (o[0] * d[0] + o[1] * d[1]), o[0] ** 2 + o[1] ** 2 - size[0] ** 2
            cuts = cuts[4:] + [root.real for root in np.roots([a, b, c]) if abs(root.imag) < 1e-12]
        for cut in cuts:
            at = np.abs(o + cut * d) - size * (1 + 1e-9)
            within = (
                at.max() <= 0
                if solids.kind[k] == 1
                else at[2] <= 0 and math.hypot(*(o + cut * d)[:2]) <= size[0] * (1 + 1e-9)
            )
            if within and cut > 0:
                found.append((cut, number))
    return min(found)


def test_every_pixel_is_what_a_plain_ray_tracer_sees(source):
    dice = np.random.default_rng(0)
    objects = 0
    # single precision, and at the sides of a very wide picture the wall is seen at a small angle
    exact = 1e-6 if max(source.setting.size) < 4 * min(source.setting.size) else 3e-5
    for index in range(len(TASKS)):
        item = source.compose(index)
        geometry = render(item.scene, source.setting.size, item.draws)
        for _ in range(60):
            view, v, u = (int(dice.integers(n)) for n in geometry.depth.shape)
            depth, instance = slow(item.scene, view, u, v)
            assert instance == geometry.instances[view, v, u]
            assert geometry.depth[view, v, u] == pytest.approx(0 if math.isinf(depth) else depth, rel=exact)
            objects += instance > 0
    assert objects > 30


def test_points_project_to_their_own_pixels_at_their_depth(source):
    for sample in source:
        geometry = sample.geometry
        for k, depth in enumerate(geometry.depth):
            lens, camera = geometry.intrinsics[k], geometry.extrinsics[k]
            known = depth > 0
            pixel, z = project(geometry.points[k].astype(float), lens, camera)
            v, u = np.nonzero(known)
            assert np.abs(pixel[known] - np.stack([u, v], -1) - 0.5).max() < 1e-3
            assert np.abs(z - depth)[known].max() < 1e-5 * depth.max()
            assert np.abs(unproject(depth, lens, camera) - geometry.points[k])[known].max() < 1e-5 * depth.max()
            for array in (geometry.points[k], geometry.normals[k], geometry.instances[k]):
                assert not array[~known].any()


def test_views_agree_about_depth_where_they_see_the_same_object():
    shares, errors = [], []
    for sample in Scenes(count=24, seed=9):
        geometry = sample.geometry
        pixel, z = project(geometry.points[0], geometry.intrinsics[1], geometry.extrinsics[1])
        height, width = z.shape
        inside = (geometry.instances[0] > 0) & (pixel >= 0).all(-1) & (pixel[..., 0] < width) & (pixel[..., 1] < height)
        column, row = pixel[inside].astype(int).T
        same = geometry.instances[1][row, column] == geometry.instances[0][inside]
        shares.append(same.mean())
        errors.append(np.abs(geometry.depth[1][row, column] / z[inside] - 1)[same])
    assert np.mean(shares) > 0.85
    assert np.median(np.concatenate(errors)) < 2e-3


def test_normals_are_those_of_the_surface_and_face_the_camera():
    cosines = []
    for sample in Scenes(count=24, seed=2):
        geometry = sample.geometry
        for k, points in enumerate(geometry.points.astype(float)):
            normal, camera = geometry.normals[k], geometry.extrinsics[k]
            known = geometry.depth[k] > 0
            assert np.abs(np.linalg.norm(normal[known], axis=-1) - 1).max() < 1e-5
            towards = -camera[:, :3].T @ camera[:, 3] - points
            assert ((normal * towards).sum(-1)[known] > -1e-4).all()
            # cross product of neighbours within one object
            right, down = points[1:-1, 2:] - points[1:-1, :-2], points[2:, 1:-1] - points[:-2, 1:-1]
            cross = np.cross(down, right)
            number = geometry.instances[k]
            inner = (number[1:-1, 1:-1] > 0) & known[1:-1, 1:-1]
            for other in (number[1:-1, 2:], number[1:-1, :-2], number[2:, 1:-1], number[:-2, 1:-1]):
                inner &= other == number[1:-1, 1:-1]
            length = np.linalg.norm(cross, axis=-1)
            cosines.append(((cross * normal[1:-1, 1:-1]).sum(-1) / np.maximum(length, 1e-12))[inner])
    # not at edges between the faces of a solid, of which there are some
    assert np.quantile(np.concatenate(cosines), 0.3) > 0.999


def test_brightness_is_albedo_in_the_light_and_noise_is_small():
    item = Scenes(count=10**4, seed=1, tasks=["nearer"]).compose(0)
    first, again = (render(item.scene, (112, 112), Draws(seed, 0, 0)) for seed in (1, 2))
    difference = np.stack(first.views).astype(int) - np.stack(again.views)
    # two independent draws of N(0, 0.01)
    assert np.std(difference) == pytest.approx(0.01 * 255 * 2**0.5, rel=0.08)
    solids = item.scene.solids
    for k, number in enumerate(solids.instance):
        if solids.pattern[k] == 0:
            seen = first.instances == number
            lit = 0.4 + 0.6 * np.maximum(0, first.normals[seen] @ item.scene.light)
            expected = np.clip(255 * solids.colour[k] * lit[:, None], 0, 255)
            assert np.abs(np.stack(first.views)[seen] - expected).mean() < 3


def test_an_empty_background_has_no_depth_and_a_wall_has():
    backgrounds = set()
    for sample in Scenes(count=36, seed=3):
        geometry = sample.geometry
        behind = geometry.depth[geometry.instances == 0]
        backgrounds.add(bool(behind.all()))
        assert behind.all() or not behind.any()
        if behind.all():
            assert behind.min() > 8
    assert backgrounds == {True, False}
