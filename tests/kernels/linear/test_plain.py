"""Plain linear attention against values worked out by hand and the closed form of the sum."""

import pytest
import torch

from gnomon.kernels.linear.plain import plain
from gnomon.kernels.mask import CAUSAL


def test_by_hand():
    """One head, one channel: o_t = q_t (k_1 v_1 + ... + k_t v_t)."""
    q, k, v = (torch.tensor(x, dtype=torch.float64).reshape(1, 3, 1, 1) for x in ([1, 2, 3], [1, -1, 2], [5, 1, 2]))
    o, state = plain(q, k, v, mask=CAUSAL, scale=1.0)
    assert o.flatten().tolist() == [5.0, 8.0, 24.0]
    assert state is not None and state["s"].item() == 8.0
    assert plain(q, k, v, scale=0.5)[0].flatten().tolist() == [4.0, 8.0, 12.0]


def test_state_does_not_know_the_order():
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 9, 3, 4, dtype=torch.float64) for _ in range(3))
    order = torch.randperm(9)
    states = [plain(q, k[:, o], v[:, o], mask=CAUSAL, block=4)[1] for o in (torch.arange(9), order)]
    torch.testing.assert_close(states[0], states[1])


@pytest.mark.parametrize("impl", ["reference", "chunk"])
def test_noncausal_products_of_half_precision_are_kept_in_float32(impl):
    """A query times a key is 100,000, beyond float16; the outputs, 6,250, are not."""
    q, k, v = (torch.full((1, 64, 1, 1), x, dtype=torch.float16) for x in (1000, 100, 2**-10))
    o, _ = plain(q, k, v, scale=1.0, impl=impl)
    torch.testing.assert_close(o, torch.full_like(o, 64 * 100000 / 2**10))
