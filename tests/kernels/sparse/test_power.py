"""PowerAttention: golden numbers of blocks, and how far it reaches in so many layers."""

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from gnomon.kernels.mask import CAUSAL, EVERYTHING
from gnomon.kernels.masks.tokens import Tokens
from gnomon.kernels.sparse.power import power


@pytest.mark.parametrize("local, first, blocks", [(1, 0, 897), (1, 1, 1017), (5, 1, 1141)])
def test_golden_number_of_blocks(seen, local, first, blocks):
    """128 blocks; of one token each they are the pairs."""
    assert int(seen(power, 128, mask=CAUSAL, block=1, local=local, first=first).sum()) == blocks


def test_reach_is_the_number_of_powers(seen):
    """A distance is reached in as many layers as its binary form has ones, and not sooner."""
    step = seen(power, 32, mask=CAUSAL, block=1, local=1, first=0).double()
    reached = torch.eye(32, dtype=torch.float64)
    for layers in range(1, 5):
        reached = reached @ step
        for distance in range(32):
            assert bool(reached[31, 31 - distance] > 0) == (distance.bit_count() <= layers)


def test_three_blocks_are_dense_and_never_see_the_future():
    q, k, v = (torch.randn(1, 23, 2, 4, dtype=torch.float64) for _ in range(3))
    o, _ = power(q, k, v, mask=CAUSAL, block=8, local=1, first=0)
    whole = scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v)), is_causal=True).transpose(1, 2)
    torch.testing.assert_close(o, whole)


def test_without_a_mask_it_is_refused():
    q = torch.randn(1, 8, 1, 4)
    with pytest.raises(ValueError, match=r"^power: mask None lets tokens see the future; pass mask=CAUSAL"):
        power(q, q, q)
    for mask in (EVERYTHING, EVERYTHING.on(Tokens.line(8))):
        with pytest.raises(ValueError, match=r"^power: mask EVERYTHING lets tokens see the future; pass mask=CAUSAL"):
            power(q, q, q, mask=mask)


@pytest.mark.parametrize("wrong", [{"block": 0}, {"local": -1}, {"first": -1}], ids=str)
def test_numbers_that_mean_nothing_are_refused(wrong):
    q = torch.randn(1, 8, 1, 4)
    ((name, value),) = wrong.items()
    with pytest.raises(ValueError, match=rf"^power: .*{name} {value}\b.*; use block >= 1"):
        power(q, q, q, mask=CAUSAL, **wrong)
