"""Every answer worked out again from the words of the question, the cameras, and where objects are seen."""

import re
from itertools import permutations, product

import numpy as np
import pytest

from gnomon.data.sources.scenes.draws import Draws
from gnomon.data.sources.scenes.source import Scenes
from gnomon.data.sources.scenes.tasks.mirror import figure, same

COUNT = 24


def samples(task, count=COUNT):
    return Scenes(count=count, seed=12, tasks=[task], prompt="words")


def said(sample):
    """Names in the order of the question, with where each object is for the first camera, and its radius."""
    camera = sample.geometry.extrinsics[0]
    things = {thing["name"]: thing for thing in sample.meta["objects"]}
    names = re.findall(r"\b\w+ (?:ball|box|can|figure)\b", sample.turns[0].text)
    return {name: (camera[:, :3] @ things[name]["centre"] + camera[:, 3], things[name]["radius"]) for name in names}


@pytest.mark.parametrize("task", ["nearer", "mirror", "count"])
def test_objects_are_where_the_pictures_show_them(task):
    """So that the other tests may use their centres."""
    for sample in samples(task):
        geometry = sample.geometry
        seen = set(np.unique(geometry.instances)) - {0}
        assert seen <= {thing["id"] for thing in sample.meta["objects"]}
        for thing in sample.meta["objects"]:
            points = geometry.points[geometry.instances == thing["id"]].astype(float)
            away = np.linalg.norm(points - thing["centre"], axis=1)
            if thing["name"].endswith("ball") and len(points):
                assert np.abs(away - thing["radius"]).max() < 1e-4
            elif len(points):
                assert away.max() < thing["radius"] + 1e-4 and away.max() > 0.3 * thing["radius"]


def test_nearer():
    for sample in samples("nearer"):
        away = {name: np.linalg.norm(at) for name, (at, _) in said(sample).items()}
        assert sample.answer == min(away, key=away.get)
        # and so are their surfaces
        geometry, front = sample.geometry, {}
        for thing in sample.meta["objects"][:2]:
            points = geometry.points[0][geometry.instances[0] == thing["id"]]
            camera = geometry.extrinsics[0]
            front[thing["name"]] = np.linalg.norm(points @ camera[:, :3].T + camera[:, 3], axis=1).min()
        assert sample.answer == min(front, key=front.get)


def test_depth_order():
    for sample in samples("depth_order"):
        away = {name: np.linalg.norm(at) for name, (at, _) in said(sample).items()}
        assert sample.answer == ", ".join(sorted(away, key=away.get))


def test_larger():
    for sample in samples("larger"):
        sizes = {name: radius for name, (_, radius) in said(sample).items()}
        assert sample.answer == max(sizes, key=sizes.get)


def test_distance():
    for sample in samples("distance"):
        (one, _), (two, _) = said(sample).values()
        assert sample.answer == pytest.approx(np.linalg.norm(one - two), abs=0.006)


def test_closest():
    for sample in samples("closest"):
        (aim, _), *others = said(sample).values()
        away = {name: np.linalg.norm(at - aim) for name, (at, _) in list(said(sample).items())[1:]}
        assert len(others) == 3 and sample.answer == min(away, key=away.get)
        nearest, second = sorted(away.values())[:2]
        assert second > 1.2 * nearest


def test_height():
    for sample in samples("height"):
        (high, _), (low, _) = said(sample).values()
        assert sample.answer == pytest.approx(low[1] - high[1], abs=0.006)


def test_the_length_that_gives_the_scale():
    for sample in samples("height"):
        told = float(re.search(r"taken (\d\.\d\d) m", sample.turns[0].text)[1])
        eyes = [-camera[:, :3].T @ camera[:, 3] for camera in sample.geometry.extrinsics]
        assert told == pytest.approx(np.linalg.norm(eyes[1] - eyes[0]), abs=0.006)


def test_direction():
    for sample in samples("direction", 40):
        # complex numbers: x to the right, z ahead; dividing by the heading turns it to 1, so that left is +i
        stand, face, other = (complex(at[2], -at[0]) for at, _ in said(sample).values())
        bearing = np.degrees(np.angle((other - stand) / (face - stand)))
        way = {"ahead": 0, "left": 90, "behind": 180, "right": -90}[sample.answer]
        assert abs((bearing - way + 180) % 360 - 180) < 26


def test_between():
    for sample in samples("between"):
        (start, _), (end, _), (middle, radius) = said(sample).values()
        area = np.linalg.norm(np.cross(end - start, middle - start))
        off = area / np.linalg.norm(end - start)
        assert off < 1e-6 if sample.answer == "yes" else off > 1.9 * radius
        # in the picture it always is
        flat = [at[:2] / at[2] for at in (start, middle, end)]
        assert abs(np.linalg.det(np.array([flat[1] - flat[0], flat[2] - flat[0]]))) < 1e-9
        assert (flat[1] - flat[0]) @ (flat[2] - flat[1]) > 0


def test_motion_direction():
    ways = {"right": (1, 0, 0), "left": (-1, 0, 0), "down": (0, 1, 0), "up": (0, -1, 0), "forward": (0, 0, 1)}
    ways["backward"] = (0, 0, -1)
    for sample in samples("motion_direction"):
        first, second = (np.vstack([camera, [0, 0, 0, 1]]) for camera in sample.geometry.extrinsics[:2])
        # where the second camera is, in the first one's frame
        moved = (first @ np.linalg.inv(second))[:3, 3]
        assert max(ways, key=lambda way: moved @ ways[way]) == sample.answer
        assert moved @ ways[sample.answer] > 0.86 * np.linalg.norm(moved)


def test_motion_angle():
    for sample in samples("motion_angle"):
        first, second = sample.geometry.extrinsics[:2, :, :3]
        # the angle is that of the eigenvalues
        angle = np.degrees(np.abs(np.angle(np.linalg.eigvals(second @ first.T))).max())
        bounds = {"less than 5 degrees": (0, 5), "5 to 11 degrees": (5, 11), "more than 11 degrees": (11, 180)}
        assert bounds[sample.answer][0] <= angle <= bounds[sample.answer][1]


def test_count():
    for sample in samples("count"):
        instances = sample.geometry.instances
        assert len(set(np.unique(instances)) - {0}) == sample.answer
        assert len(set(np.unique(instances[0])) - {0}) == 3


def test_mirror():
    source = Scenes(count=COUNT, seed=12, tasks=["mirror"])
    for index in range(COUNT):
        item = source.compose(index)
        solids = item.scene.solids
        one, two = (solids.centre[solids.instance == number] for number in item.numbers)
        # cubes come in the same order; with corresponding points, the sign of this determinant is that of the map
        sign = np.linalg.det((one - one.mean(0)).T @ (two - two.mean(0)))
        assert item.question.words == ("same" if sign > 0 else "mirrored")
        assert np.linalg.norm(one[0] - one[1]) / np.linalg.norm(two[0] - two[1]) == pytest.approx(
            item.chosen.radii[0] / item.chosen.radii[1]
        )


def rotated(cubes):
    """All 24 turns, from quarter turns about x and y."""
    x, y = np.array([[1, 0, 0], [0, 0, -1], [0, 1, 0]]), np.array([[0, 0, 1], [0, 1, 0], [-1, 0, 0]])
    power = np.linalg.matrix_power
    found = set()
    for i, j, k in product(range(4), repeat=3):
        turned = cubes @ (power(x, i) @ power(y, j) @ power(x, k)).T
        found.add(tuple(sorted(map(tuple, (turned - turned.min(0)).tolist()))))
    return found


def test_figures_are_no_mirror_images_of_themselves():
    for seed in range(40):
        cubes = figure(Draws(seed, 0, 0))
        assert not rotated(cubes) & rotated(cubes * [1, -1, 1])
        # in one piece, each cube touching the one before
        assert (np.abs(np.diff(cubes, axis=0)).sum(1) == 1).all() and len({*map(tuple, cubes.tolist())}) == len(cubes)


def test_same_knows_turns_from_mirrors():
    # an L lies in a plane, which a mirror does not change; a corner with arms of 1, 2 and 3 does
    ell, corner = np.array([[0, 0, 0], [1, 0, 0], [1, 1, 0]]), np.zeros((7, 3), int)
    for k, (axis, length) in enumerate([(0, 1), (1, 1), (1, 2), (2, 1), (2, 2), (2, 3)], 1):
        corner[k, axis] = length
    assert same(ell, ell * [1, 1, -1]) and not same(corner, corner * [-1, 1, 1])
    for order in permutations(range(3)):
        even = np.linalg.det(np.eye(3)[list(order)]) > 0
        assert same(corner, corner[:, order]) == even
