"""Attention block after block of keys, against all scores at once with a mask."""

import pytest
import torch

from gnomon.kernels.by_keys import attend_by_keys


def inputs(queries: int, keys: int, *, rows: int = 2, past: int | None = None, dtype=torch.float64):
    """Blocks of 4 keys, at random; of causal ones the own block too and none that is later."""
    torch.manual_seed(0)
    q, k, v = torch.randn(queries, rows, 3), torch.randn(keys, 3), torch.randn(keys, 5)
    blocks = torch.arange(-(-keys // 4))
    chosen = torch.rand(queries, len(blocks)) < 0.4
    own = (blocks[-1] if past is None else (past + torch.arange(queries)) // 4).expand(queries)[:, None]
    chosen = (chosen | (blocks == own)) & (blocks <= own)
    return [x.to(dtype).requires_grad_() for x in (q, k, v)], chosen


def truth(q, k, v, chosen, past: int | None):
    allowed = chosen.repeat_interleave(4, 1)[:, : len(k)]
    if past is not None:
        allowed = allowed & (torch.arange(len(k)) <= past + torch.arange(len(q))[:, None])
    scores = torch.einsum("nhd,kd->nhk", q, k) * 0.7
    return scores.masked_fill(~allowed[:, None], -torch.inf).softmax(-1) @ v


@pytest.mark.parametrize(
    ("queries", "keys", "past"), [(23, 23, 0), (9, 30, 21), (1, 8, 7), (11, 18, None), (5, 3, None)]
)
def test_values_and_gradients_are_those_of_a_mask(queries, keys, past):
    learned, chosen = inputs(queries, keys, past=past)
    ours = attend_by_keys(*learned, chosen, block=4, scale=0.7, past=past)
    theirs = truth(*learned, chosen, past)
    torch.testing.assert_close(ours, theirs)
    direction = torch.randn_like(ours)
    for mine, other in zip(
        torch.autograd.grad(ours, learned, direction), torch.autograd.grad(theirs, learned, direction)
    ):
        torch.testing.assert_close(mine, other)


def test_gradients_by_finite_differences():
    learned, chosen = inputs(7, 10, past=3)
    assert torch.autograd.gradcheck(
        lambda q, k, v: attend_by_keys(q, k, v, chosen, block=4, scale=0.7, past=3), learned
    )


def test_scores_of_any_size():
    """The largest score comes in the first block, in the last one, and far above what an exponential holds."""
    learned, chosen = inputs(6, 12)
    chosen[:] = True
    with torch.no_grad():
        learned[0][:3] *= 1e4
        learned[0][3:] *= -1e4
    o = attend_by_keys(*learned, chosen, block=4, scale=0.7)
    torch.testing.assert_close(o, truth(*learned, chosen, None))
    assert all(bool(x.isfinite().all()) for x in torch.autograd.grad(o.sum(), learned))


def test_what_no_query_chose_is_not_read():
    learned, chosen = inputs(9, 16)
    chosen[:, 1] = False
    with torch.no_grad():
        learned[1][4:8] = torch.nan
        learned[2][4:8] = torch.nan
    o = attend_by_keys(*learned, chosen, block=4, scale=0.7)
    dq, dk, dv = torch.autograd.grad(o.sum(), learned)
    assert bool(o.isfinite().all()) and bool(dq.isfinite().all())
    assert not dk[4:8].any() and not dv[4:8].any() and dk[:4].any()


def test_sums_of_half_precision_are_wide():
    learned, chosen = inputs(40, 64, past=24, dtype=torch.bfloat16)
    o = attend_by_keys(*learned, chosen, block=4, scale=0.7, past=24)
    fine = truth(*(x.double() for x in learned), chosen, 24)
    assert o.dtype == torch.bfloat16
    # the output is rounded once
    torch.testing.assert_close(o.double(), fine, rtol=2**-8, atol=1e-6)
    for x, grad in zip(learned, torch.autograd.grad(o.sum(), learned)):
        assert grad.dtype == x.dtype
