"""Rules that say nothing are refused where they are made."""

import pytest
import torch

from gnomon.kernels.masks.atoms import band, columns, disc, k_is, part, q_is
from gnomon.kernels.masks.tokens import Tokens


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: q_is("item"), r"q_is of 'item' without a value"),
        (lambda: k_is("item"), r"k_is of 'item' without a value"),
        (lambda: columns(torch.tensor([], dtype=torch.long)), r"columns at \[\]"),
        (lambda: columns(torch.tensor([3, -1])), r"columns at \[3, -1\]"),
        (lambda: columns(torch.tensor([0.5])), r"columns at \[0\.5\]"),
        (lambda: columns([0, 1]), r"columns at a list"),
        (lambda: columns(torch.tensor([True, False])), r"columns at \[True, False\]"),
        (lambda: columns(torch.tensor([1 + 1j])), r"columns at \[\(1\+1j\)\]"),
        (lambda: part("p", 0), r"size 0 is too small"),
        (lambda: disc(0), r"a disc of radius 0"),
        (lambda: disc(-2.5), r"a disc of radius -2\.5"),
        (lambda: band("x", -1), r"a band of radius -1 hides everything"),
    ],
)
def test_refused(make, told):
    with pytest.raises(ValueError, match=f"^mask: {told}; "):
        make()


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8])
def test_columns_are_seen_by_all(dtype):
    """Also those of small integers, which torch would take for a mask."""
    seen = columns(torch.tensor([[2, 0]], dtype=dtype)).on(Tokens.line(4)).dense()[0, 0]
    assert torch.equal(seen, torch.tensor([True, False, True, False]).expand(4, 4))
