"""Points from two angles: right is right, far is up or right, down is down, and what is nearer hides what is behind."""

import base64
import io
import re

import numpy as np
import pytest
from PIL import Image

from gnomon.eval.page.clouds import charts
from gnomon.eval.sight import Cloud

RED, BLUE = [200, 0, 0], [0, 0, 200]
CAMERAS = np.eye(3, 4)[None]


def cloud(points, colours=None, cameras=CAMERAS):
    points = np.array(points, float)
    given = [RED] * len(points) if colours is None else colours
    return Cloud(points, np.array(given, np.uint8), cameras)


def drawn(*clouds: tuple[str, Cloud]) -> list[np.ndarray]:
    """(H,W,4) of each figure: from above, one per cloud, then from the side."""
    found = re.findall(r"data:image/png;base64,([^\"]+)", charts(clouds))
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGBA")).astype(int) for data in found]


def where(image: np.ndarray, colour: list[int]) -> tuple[float, float]:
    """Mean row and column of a colour."""
    rows, columns = np.nonzero((np.abs(image[..., :3] - colour).max(-1) < 40) & (image[..., 3] > 0))
    return float(rows.mean()), float(columns.mean())


def test_axes_run_as_they_are_named():
    above, side = drawn(("true", cloud([[0, 0, 2], [1, 1, 4]], [RED, BLUE])))
    (near, left), (far, right) = where(above, RED), where(above, BLUE)
    # x to the right, z upwards, in one unit: a step of 1 in x and 2 in z
    assert right > left and near > far and (near - far) == pytest.approx(2 * (right - left), rel=0.05)
    (high, near), (low, far) = where(side, RED), where(side, BLUE)
    # z to the right, y downwards
    assert far > near and low > high and (far - near) == pytest.approx(2 * (low - high), rel=0.05)


def test_what_is_nearer_hides_what_is_behind():
    """Seen from above, what has less y; seen from the right, what has more x."""
    frame = [[-2, -2, 0], [2, 2, 6]]
    above, _ = drawn(("true", cloud([*frame, [0, 1, 3], [0, -1, 3]], [RED, RED, RED, BLUE])))
    assert len(np.argwhere(np.abs(above[..., :3] - BLUE).max(-1) < 40)) == 25
    _, side = drawn(("true", cloud([*frame, [1, 0, 3], [-1, 0, 3]], [RED, RED, BLUE, RED])))
    assert len(np.argwhere(np.abs(side[..., :3] - BLUE).max(-1) < 40)) == 25


def test_clouds_share_the_space_of_the_last_one():
    true = cloud([[-1, -1, 1], [1, 1, 3]])
    one, other, *_ = drawn(("predicted", cloud([[-1, -1, 1], [50, 1, 3]])), ("true", true))
    lone = (one[..., 3] > 0).sum()
    assert lone == 25 and (other[..., 3] > 0).sum() == 50
    html = charts([("predicted", cloud([[-1, -1, 1], [50, 1, 3]])), ("true", true)])
    assert "predicted points from above; 50% of them lie outside" in html and 'true points from above"' in html


def test_cameras_are_drawn_and_are_in_sight():
    cameras = np.eye(3, 4)[None].repeat(2, 0)
    cameras[1, 0, 3] = -8
    html = charts([("true", cloud([[0, 0, 2], [1, 1, 4]], cameras=cameras))])
    assert html.count('class="camera"') == 4 and "camera of view 1" in html
    paths = " ".join(re.findall(r'class="camera" d="([^"]+)"', html))
    places = [float(x) for x in re.findall(r"[ML](\S+) ", paths)]
    assert min(places) >= 44 and max(places) <= 472


def test_a_single_point_and_one_at_infinity_of_numbers_do_not_fail():
    assert len(drawn(("true", cloud([[0, 0, 2]])))) == 2
    assert len(drawn(("predicted", cloud([[6e4, 0, 2], [0, 0, 1]], cameras=None)))) == 2
