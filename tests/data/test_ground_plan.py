"""Views in a row, depth in colours, and things where they belong on the plan."""

import numpy as np
import pytest

from gnomon.data import ground_plan
from gnomon.data.sample import Geometry


@pytest.fixture
def geometry():
    """Two views of nothing but a red spot 1 m to the right and 4 m ahead, and a blue one straight ahead at 2 m."""
    lens = np.array([[40.0, 0, 20], [0, 40, 20], [0, 0, 1]])
    view = np.full((40, 40, 3), 90, np.uint8)
    depth, instance = np.zeros((40, 40), np.float32), np.zeros((40, 40), np.uint8)
    for number, (column, z, colour) in enumerate([(30, 4, (255, 0, 0)), (20, 2, (0, 0, 255))], 1):
        view[18:22, column - 1 : column + 1] = colour
        depth[18:22, column - 1 : column + 1] = z
        instance[18:22, column - 1 : column + 1] = number
    camera = np.eye(4)[:3]
    both = (np.stack([each, each]) for each in (lens, camera, depth))
    return Geometry((view, view), *both, instances=np.stack([instance, instance]))


def spot(picture, colour):
    rows, columns = np.nonzero((np.asarray(picture) == colour).all(-1))
    return rows.mean(), columns.mean()


def test_the_plan_has_right_to_the_right_and_ahead_above(geometry):
    plan = ground_plan.above(geometry, 200)
    (red_row, red_column), (blue_row, blue_column) = spot(plan, (255, 0, 0)), spot(plan, (0, 0, 255))
    assert blue_column == pytest.approx(100, abs=2) and red_row < blue_row
    # 1 m right and 2 m further away, on one scale
    assert (blue_row - red_row) / (red_column - blue_column) == pytest.approx(2, rel=0.1)


def test_names_are_written(geometry):
    plain, named = (np.asarray(ground_plan.above(geometry, 200, names=names)) for names in ({}, {1: "red", 9: "no"}))
    rows, columns = np.nonzero((plain != named).any(-1))
    row, column = spot(plain, (255, 0, 0))
    assert len(rows) and abs(columns.mean() - column) < 12 and 0 < rows.mean() - row < 16


def test_views_and_depths_are_side_by_side(geometry):
    views, depths = ground_plan.views(geometry, 162), ground_plan.depths(geometry, 162)
    assert views.size == depths.size == (162, 80)
    colours = np.asarray(depths)
    near, far, unknown = colours[40, 40], colours[40, 60], colours[10, 10]
    # red is near, blue is far, black is unknown
    assert near[0] > near[2] and far[2] > far[0] and not unknown.any()
