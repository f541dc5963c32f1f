"""Radial: the table of widths, symmetry, and a count of the pairs by hand."""

import itertools

import pytest
import torch

from gnomon.kernels.sparse.radial import radial, reach

LONG = {2: 512, 3: 512, 4: 256, 7: 256, 8: 128, 15: 128, 16: 128, 17: None, 18: 128, 31: None}
SHORT = {1: 256, 2: 128, 3: 128, 4: 128, 5: None, 6: 128, 8: 128, 10: None, 12: 128, 16: 128, 20: None, 24: 128}


@pytest.mark.parametrize("size, widths", [(1590, LONG), (256, SHORT)])
def test_golden_widths(size, widths):
    assert {distance: reach(distance, size) for distance in widths} == widths


def test_width_halves_when_the_distance_doubles():
    widths = [reach(2**e, 2**14, block=1) for e in range(1, 13)]
    assert all(a == 2 * b for a, b in itertools.pairwise(widths))


def test_two_frames_are_dense(seen):
    assert bool(seen(radial, 24, grid=(2, 3, 4)).all())


@pytest.mark.parametrize("first", [False, True])
def test_pairs(seen, first):
    """Frames of 6 tokens, at least 2 wide: widths 4, 4, 2 (dropped where 3 does not divide), ... by distance."""
    frames, size = 8, 6
    # 2^3 / 2^bits: 2, 2 at distance 2 and 3; 1 < 2 from distance 4 on, where every second distance stays, 2 wide
    width = {0: 6, 1: 6, 2: 2, 3: 2, 4: 2, 6: 2}
    shown = seen(radial, frames * size, grid=(frames, 2, 3), block=2, first=first)
    for i in range(frames * size):
        for j in range(frames * size):
            apart = width.get(abs(i // size - j // size))
            near = apart is not None and abs(i % size - j % size) <= apart
            assert bool(shown[i, j]) == (near or (first and j < size)), (i, j)
    assert torch.equal(shown, shown.T) != first


def test_refusal():
    q = torch.randn(1, 12, 1, 4)
    with pytest.raises(ValueError, match=r"^radial: grid \(3, 4\), "):
        radial(q, q, q, grid=(3, 4))
    for wrong in ({"decay": 0.0}, {"decay": 1.5}, {"block": 0}):
        with pytest.raises(ValueError, match=r"^radial: decay .*, block .*; use 0 < decay <= 1"):
            radial(q, q, q, grid=(3, 2, 2), **wrong)
