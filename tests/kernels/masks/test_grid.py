"""Grid windows against rows written down in the sources of the rule and against a loop over the definition."""

import itertools

import pytest
import torch

from gnomon.kernels.masks.atoms import part
from gnomon.kernels.masks.grid import window, windows
from gnomon.kernels.masks.tokens import Tokens


def rows(length, size, **options):
    dense = window("x", size, **options).on(Tokens.grid(length)).dense()[0, 0]
    return [row.nonzero()[:, 0].tolist() for row in dense]


def spans(*pairs):
    return [list(range(first, last + 1)) for first, last in pairs]


def test_golden_rows():
    assert rows(8, 3) == spans((0, 2), (0, 2), (1, 3), (2, 4), (3, 5), (4, 6), (5, 7), (5, 7))
    assert rows(8, 4) == spans((0, 3), (0, 3), (0, 3), (1, 4), (2, 5), (3, 6), (4, 7), (4, 7))
    assert rows(8, 4, stride=2) == spans((0, 3), (0, 3), (1, 4), (1, 4), (3, 6), (3, 6), (4, 7), (4, 7))
    assert rows(8, 4, stride=2, causal=True) == spans((0, 0), (0, 1), (0, 2), (0, 3), (2, 4), (2, 5), (4, 6), (4, 7))
    assert rows(10, 4, stride=4)[-1] == [6, 7, 8, 9]
    assert rows(8, 3, dilation=2)[2] == [0, 2, 4] and rows(8, 3, dilation=2)[7] == [3, 5, 7]


@pytest.mark.parametrize("stride, dilation", list(itertools.product((1, 2, 3), (1, 2))))
def test_every_row_has_the_whole_window(stride, dilation):
    dense = windows((3, 3), stride=stride, dilation=dilation).on(Tokens.grid(7, 9)).dense()[0, 0]
    assert set(dense.sum(1).tolist()) == {9}


def test_limits():
    tokens = Tokens.grid(4, 6)
    assert bool(windows((4, 6), stride=(2, 3)).on(tokens).dense().all())
    blocked = windows((2, 3), stride=(2, 3)).on(tokens).dense()
    torch.testing.assert_close(blocked, (part("y", 2) & part("x", 3)).on(tokens).dense())


def test_axes_are_independent():
    dense = windows((3, 2), causal=(True, False)).on(Tokens.grid(4, 5)).dense()[0, 0]
    y = window("x", 3, causal=True).on(Tokens.grid(4)).dense()[0, 0]
    x = window("x", 2).on(Tokens.grid(5)).dense()[0, 0]
    assert torch.equal(dense, torch.kron(y.int(), x.int()).bool())


def test_a_window_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="mask: a window of 5 at dilation 1 exceeds axis y of 4"):
        windows((5, 3)).on(Tokens.grid(4, 6))
    with pytest.raises(ValueError, match="stride 4"):
        window("x", 3, stride=4)


@pytest.mark.parametrize("size", [(), (1, 2, 3, 4)])
def test_windows_of_no_axis_or_of_a_fourth_are_refused(size):
    with pytest.raises(ValueError, match=rf"^mask: windows \(.*\) of {len(size)} axes; "):
        windows(size)
