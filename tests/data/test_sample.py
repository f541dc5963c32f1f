"""Marks are counted; geometry is there only when it is given."""

import numpy as np

from gnomon.data.sample import Geometry, Sample, Turn


def test_marks_are_counted_over_all_turns():
    turns = (Turn("user", "<image>\n<image>\nWhich?"), Turn("assistant", "A"), Turn("user", "And <image>?"))
    assert Sample(id="x", turns=turns).marks == 3


def test_geometry_and_each_of_its_parts_are_optional():
    assert Sample(id="x", turns=()).geometry is None
    view = np.zeros((4, 4, 3), np.uint8)
    geometry = Sample(id="x", turns=(), images=(view,), geometry=Geometry((view, view))).geometry
    assert len(geometry.views) == 2
    rest = ("intrinsics", "extrinsics", "depth", "normals", "points", "instances")
    assert all(getattr(geometry, name) is None for name in rest)
