"""What core M shares, against complex numbers and values worked out by hand."""

import math

import pytest
import torch

from gnomon.kernels.linear.inline import inline
from gnomon.kernels.linear.mala import mala
from gnomon.kernels.linear.nalaformer import nalaformer
from gnomon.kernels.linear.rala import rala
from gnomon.kernels.mask import CAUSAL, EVERYTHING
from gnomon.kernels.masks.tokens import Tokens
from gnomon.kernels.moments import grid_angles, rotate


def test_rotation_is_multiplication_by_a_unit_complex_number():
    torch.manual_seed(0)
    x, angles = torch.randn(2, 5, 3, 8, dtype=torch.float64), torch.randn(2, 5, 1, 4, dtype=torch.float64)
    turned = torch.view_as_complex(x.unflatten(-1, (4, 2))) * torch.polar(torch.ones_like(angles), angles)
    torch.testing.assert_close(rotate(x, angles), torch.view_as_real(turned).flatten(-2))


def test_angles_of_a_grid():
    """Width 8: two frequencies, 1 and 1/10000; the row turns the first two pairs, the column the other two."""
    angles = grid_angles((2, 3), 8)
    assert angles.shape == (1, 6, 1, 4)
    torch.testing.assert_close(angles[0, 5, 0], torch.tensor([1, 1e-4, 2, 2e-4]))
    with pytest.raises(ValueError, match="grid_angles: width 6"):
        grid_angles((2, 3), 6)


def test_angles_come_in_pairs():
    q = torch.randn(1, 4, 1, 8)
    with pytest.raises(ValueError, match="mala: angles of the queries or of the keys are missing"):
        mala(q, q, q, angles_q=torch.zeros(1, 4, 1, 4))
    with pytest.raises(ValueError, match=r"mala: angles_k has shape \(1, 4, 1, 8\); give .* 4\)"):
        mala(q, q, q, angles_q=torch.zeros(1, 4, 1, 4), angles_k=torch.zeros(1, 4, 1, 8))


@pytest.mark.parametrize("op", [mala, nalaformer, rala])
def test_angles_of_one_row_stand_for_all(op):
    """Those of a grid: values and gradients, and where a row is padded."""
    torch.manual_seed(0)
    q, k, v = (torch.randn(3, 6, 2, 8, dtype=torch.float64) for _ in range(3))
    valid = torch.ones(3, 6, dtype=torch.bool)
    valid[1, 4:] = False
    one = grid_angles((2, 3), 8).double()
    for mask in (None, EVERYTHING.on(Tokens.padded(valid))):
        for impl in ("reference", "chunk"):
            found, gradients = [], []
            for rows in (1, 3):
                angles = [one.expand(rows, -1, -1, -1).clone().requires_grad_() for _ in range(2)]
                o, _ = op(q, k, v, angles_q=angles[0], angles_k=angles[1], mask=mask, impl=impl)
                found.append(o)
                gradients.append([g.sum(0) for g in torch.autograd.grad(o.square().sum(), angles)])
            torch.testing.assert_close(*found)
            torch.testing.assert_close(*gradients)
    with pytest.raises(ValueError, match=r"angles_q has shape \(2, 6, 1, 4\); let it begin with \(3, 6\)"):
        op(q, k, v, angles_q=one.expand(2, -1, -1, -1), angles_k=one)


@pytest.mark.parametrize("op", [inline, mala])
def test_the_sums_are_taken_in_float32(op):
    """In bfloat16, 256 + 1 is 256: a sum over many tokens must not stop there."""
    tokens = 3000
    q = torch.ones(1, tokens, 1, 2, dtype=torch.bfloat16)
    v = torch.ones(1, tokens, 1, 1, dtype=torch.bfloat16)
    for mask in (None, CAUSAL):
        o, state = op(q, q, v, mask=mask)
        assert o.dtype == torch.bfloat16
        assert math.isclose(o[0, -1].item(), 1.0, rel_tol=1e-2)
    assert state["n"].item() == tokens and state["u"].item() == tokens


@pytest.mark.parametrize("mask", [None, CAUSAL])
def test_autocast_does_not_round_the_sums(mask):
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, 300, 2, 16).bfloat16() for _ in range(3))
    alone, _ = mala(q, k, v, mask=mask)
    with torch.autocast("cpu", torch.bfloat16):
        inside, _ = mala(q, k, v, mask=mask)
    assert torch.equal(inside, alone)
