"""The contact sheet holds every image and grows with the text."""

import numpy as np
import pytest
from PIL import Image

from gnomon.data.sample import Geometry, Sample, Turn
from gnomon.data.sheet import contact_sheet


def sample(colour: int, answer: str = "yes") -> Sample:
    image = np.full((20, 40, 3), colour, np.uint8)
    return Sample(id="x", turns=(Turn("user", "<image>\nRed?"), Turn("assistant", answer)), images=(image,))


def test_every_image_is_shown_at_the_given_width(tmp_path):
    path = contact_sheet([sample(c) for c in (10, 90, 170)], tmp_path / "sheet.png", columns=2, width=100)
    sheet = np.asarray(Image.open(path))
    assert sheet.shape[1] == 2 * 100 + 3 * 12
    # The inside of each picture keeps its colour: 98 by 48 pixels within a frame.
    for colour in (10, 90, 170):
        assert (sheet == colour).all(axis=2).sum() >= 98 * 48


def test_long_answers_make_the_sheet_taller(tmp_path):
    short = Image.open(contact_sheet([sample(0)], tmp_path / "a.png")).height
    assert Image.open(contact_sheet([sample(0, "very " * 60)], tmp_path / "b.png")).height > short + 60


def test_nothing_to_show_and_what_is_no_image_are_refused(tmp_path):
    with pytest.raises(ValueError, match="no samples"):
        contact_sheet([], tmp_path / "a.png")
    with pytest.raises(ValueError, match="image"):
        contact_sheet([Sample(id="x", turns=(), images=(b"png",))], tmp_path / "a.png")
    assert not (tmp_path / "a.png").exists()


def test_encoded_images_are_shown_too(tmp_path):
    picture = tmp_path / "red.png"
    Image.new("RGB", (40, 40), (255, 0, 0)).save(picture)
    images = (picture, picture.read_bytes())
    sheet = Image.open(contact_sheet([Sample(id="x", turns=(), images=images)], tmp_path / "a.png")).convert("RGB")
    assert sum(count for count, colour in sheet.getcolors(1 << 20) if colour == (255, 0, 0)) > 2 * 200 * 200


def test_geometry_is_shown_as_far_as_it_is_known(tmp_path):
    views = tuple(np.full((40, 60, 3), shade, np.uint8) for shade in (50, 100, 150))
    lens, camera = np.array([[50.0, 0, 30], [0, 50, 20], [0, 0, 1]]), np.eye(4)[:3]
    depth = np.full((3, 40, 60), 2.0, np.float32)
    heights = []
    for k, geometry in enumerate([
        Geometry(views),
        Geometry(views, depth=depth),
        Geometry(views, np.stack([lens] * 3), np.stack([camera] * 3), depth),
    ]):  # fmt: skip
        turns = (Turn("user", "<image>\nHow far?"), Turn("assistant", "2.00"))
        one = Sample(id="x", turns=turns, images=views[:1], geometry=geometry)
        sheet = Image.open(contact_sheet([one], tmp_path / f"{k}.png", width=184))
        heights.append(sheet.height)
        # all views in one row of 60 x 40 pictures
        found = dict((colour, count) for count, colour in sheet.convert("RGB").getcolors(1 << 20))
        assert all(found[shade, shade, shade] >= 58 * 38 for shade in (50, 100, 150))
    # a row of depth maps, then a plan as high as it is wide
    assert heights[1] - heights[0] == 42 and heights[2] - heights[1] == 186
