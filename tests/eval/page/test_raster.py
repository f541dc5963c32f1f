"""Pictures of numbers: matplotlib's colours, nothing where nothing is known, and what is drawn last is on top."""

import base64
import io
import re

import matplotlib
import numpy as np
import pytest
from PIL import Image

from gnomon.eval.page.raster import INFERNO, VIRIDIS, Scale, dots, heat, picture, plane


def decoded(html: str) -> np.ndarray:
    """(H,W,4) of the picture in it."""
    data = re.search(r"data:image/png;base64,([^\"]+)", html)[1]
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGBA")).astype(int)


def rgb(name: str, count: int) -> np.ndarray:
    """(count,3) of matplotlib's own table."""
    return matplotlib.colormaps[name](np.linspace(0, 1, count), bytes=True)[:, :3].astype(int)


@pytest.mark.parametrize(("name", "colours"), [("viridis", VIRIDIS), ("inferno", INFERNO)], ids=["depth", "gate"])
def test_colours_are_those_of_matplotlib(name, colours):
    table = Scale(colours, 0, 1).table(256).astype(int)
    # ten of its colours, rounded, and straight lines between them
    assert np.abs(Scale(colours, 0, 1).table(10) - rgb(name, 10)).max() <= 2
    assert np.abs(table - rgb(name, 256)).max() <= 16
    assert np.array_equal(Scale(colours, 0, 1, backwards=True).table(256), table[::-1])


def test_a_plane_has_its_numbers_colours_and_is_clear_where_nothing_is_known():
    scale = Scale(VIRIDIS, 2.0, 6.0, backwards=True)
    image = decoded(plane(np.array([[2.0, 6.0, 4.0], [0.0, np.nan, 99.0]]), scale, "depth"))
    near, far, middle, nothing, bad, beyond = image.reshape(-1, 4)
    assert near.tolist() == [253, 231, 37, 255] and far.tolist() == beyond.tolist() == [68, 1, 84, 255]
    assert np.abs(middle[:3] - rgb("viridis", 3)[1]).max() <= 8
    assert nothing[3] == bad[3] == 0


def test_even_numbers_have_a_scale_too():
    image = decoded(plane(np.ones((2, 2)), Scale(VIRIDIS, 1.0, 1.0), "even"))
    assert (image == image[0, 0]).all() and image[0, 0, 3] == 255


def test_heat_covers_the_cells_of_the_picture():
    pixels = np.full((7, 10, 3), 100, np.uint8)
    image = decoded(heat(pixels, np.array([[0.0, 1.0]]), Scale(INFERNO, 0, 1), "gate"))[..., :3]
    assert (image[:, :5] == image[0, 0]).all() and (image[:, 5:] == image[0, 9]).all()
    assert image[0, 0].tolist() == [40, 40, 42] and image[0, 9].tolist() == [191, 193, 138]


def test_the_last_dot_is_on_top_and_what_is_outside_is_left_out():
    places, colours = np.array([[5.0, 5], [6, 5], [50, 5]]), np.array([[200, 0, 0], [0, 200, 0], [0, 0, 200]], np.uint8)
    image = decoded(f'"{dots(places, colours, (10, 20), side=3)}"')
    assert image[5, 4].tolist() == [200, 0, 0, 255]
    assert all(image[5, column].tolist() == [0, 200, 0, 255] for column in (5, 6, 7))
    assert image[..., 3].sum() == 255 * 3 * 4


def test_words_are_escaped_and_the_legend_says_its_range():
    assert 'alt="a &quot;&lt;b&gt;"' in picture(np.zeros((2, 2, 3), np.uint8), 'a "<b>')
    legend = Scale(VIRIDIS, 2.0, 6.0).legend("depth <z>")
    assert "depth &lt;z&gt;" in legend and 'aria-label="Colours from 2 to 6' in legend
    assert re.findall(r"left:([\d.]+)%\">([\d.]+)<", legend)[:2] == [("0.0", "2"), ("12.5", "2.5")]
