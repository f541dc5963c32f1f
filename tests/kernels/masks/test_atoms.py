"""Rules that say nothing are refused where they are made."""

import pytest
import torch

from gnomon.kernels.masks.atoms import band, columns, disc, k_is, part, q_is


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: q_is("item"), r"q_is of 'item' without a value"),
        (lambda: k_is("item"), r"k_is of 'item' without a value"),
        (lambda: columns(torch.tensor([], dtype=torch.long)), r"columns at \[\]"),
        (lambda: columns(torch.tensor([3, -1])), r"columns at \[3, -1\]"),
        (lambda: columns(torch.tensor([0.5])), r"columns at \[0\.5\]"),
        (lambda: part("p", 0), r"size 0 is too small"),
        (lambda: disc(0), r"a disc of radius 0"),
        (lambda: disc(-2.5), r"a disc of radius -2\.5"),
        (lambda: band("x", -1), r"a band of radius -1 hides everything"),
    ],
)
def test_refused(make, told):
    with pytest.raises(ValueError, match=f"^mask: {told}; "):
        make()
