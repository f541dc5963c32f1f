"""Letters and notes: nothing under them, nothing beside them, large enough to read."""

import numpy as np
import pytest

from gnomon.data.sources.diagrams.render import render
from gnomon.data.sources.diagrams.source import TASKS, Diagrams
from gnomon.data.sources.diagrams.style import LEAST_CAP, glyphs

SIZES = [(128, 128), (224, 224), (160, 240)]


def pixels(text, size):
    """The box of a text in pixels, without the pixel that rounding may cost it on each side."""
    m = min(size)
    x, y, w, h = (v * m for v in (text.at.real, text.at.imag, *text.half))
    left, right = (round(x - w) + 1, round(x + w) - 1) if w > 2 else (int(x), int(x) + 1)
    return left, round(y - h) + 1, right, round(y + h) - 1


@pytest.mark.parametrize("size", SIZES)
def test_texts_stand_on_bare_paper_inside_the_image(size):
    source = Diagrams(count=300, size=size, seed=5)
    for index in range(0, 300, 2):
        item = source.compose(index)
        bare = render(item.figure, item.style, [], size)
        for text in item.texts:
            left, top, right, bottom = pixels(text, size)
            assert 0 <= left < right <= size[1] and 0 <= top < bottom <= size[0]
            under = bare[top:bottom, left:right].astype(int) - np.array(item.style.paper)
            assert np.abs(under).max() < 12, f"item {index}: {text.text} stands on ink"


def test_texts_do_not_overlap_and_belong_to_the_nearest_point():
    source = Diagrams(count=400, tasks=[task for task in TASKS if task not in ("shape", "grounding")], seed=6)
    for index in range(0, 400, 2):
        item = source.compose(index)
        for k, one in enumerate(item.texts):
            for other in item.texts[:k]:
                apart = one.at - other.at
                clear = abs(apart.real) > one.half[0] + other.half[0] or abs(apart.imag) > one.half[1] + other.half[1]
                assert clear, f"item {index}: {one.text} and {other.text} overlap"
        for text, point in zip(item.texts, item.figure.points):
            nearest = min(item.figure.points, key=lambda p: abs(p - text.at))
            assert nearest == point, f"item {index}: {text.text} stands nearer to another point"


def test_names_of_shapes_stand_nearest_to_their_own_shape():
    source = Diagrams(count=300, tasks=["shape"], levels=[2, 3], seed=6)
    for index in range(300):
        item = source.compose(index)
        named = [shape for shape in item.figure.shapes if shape.name]
        for shape, text in zip(named, item.texts):

            def off(other, text=text):
                left, top, right, bottom = other.box
                x, y = text.at.real, text.at.imag
                return np.hypot(max(left - x, x - right, 0), max(top - y, y - bottom, 0))

            assert text.text == shape.name and min(named, key=off) is shape


def test_capitals_are_at_least_nine_pixels_tall_at_128():
    source = Diagrams(count=40, size=(128, 128), tasks=["point_on_line"])
    for index in range(40):
        for text in source.compose(index).texts:
            assert text.half[1] * 2 * 128 > LEAST_CAP - 1


def test_glyphs_fill_their_box():
    mask = np.asarray(glyphs("DejaVuSans", 40, "H"))
    assert abs(mask.shape[0] - 40) <= 2 and mask[:, [0, -1]].any() and mask.max() == 255
