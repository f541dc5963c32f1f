"""InLine against its matrix, and what that matrix is made for: distinct queries stay distinct."""

import torch

from gnomon.kernels.linear.inline import inline
from gnomon.kernels.mask import CAUSAL


def draw(tokens: int = 7, seed: int = 0):
    torch.manual_seed(seed)
    return [torch.randn(1, tokens, 1, 5, dtype=torch.float64) for _ in range(3)]


def weights(q, k, scale):
    """The rule, row by row: scores less their mean, plus one over their number."""
    x = q @ k.T * scale / len(k)
    return x - x.mean(-1, keepdim=True) + 1 / len(k)


def test_equals_the_matrix():
    q, k, v = draw()
    matrix = weights(q[0, :, 0], k[0, :, 0], 0.3)
    torch.testing.assert_close(matrix.sum(-1), torch.ones(7, dtype=torch.float64))
    torch.testing.assert_close(inline(q, k, v, scale=0.3)[0][0, :, 0], matrix @ v[0, :, 0])


def test_causal_is_the_matrix_of_every_prefix():
    q, k, v = draw()
    o, _ = inline(q, k, v, mask=CAUSAL, scale=0.3, block=3)
    for t in range(1, 8):
        last = weights(q[0, :t, 0], k[0, :t, 0], 0.3)[-1]
        torch.testing.assert_close(o[0, t - 1, 0], last @ v[0, :t, 0])


def test_a_longer_query_reads_something_else():
    """Division would cancel the length of the query; here it moves the output on a line away from the mean value."""
    q, k, v = draw()
    mean = v.mean(1, keepdim=True)
    once, twice = inline(q, k, v)[0], inline(2 * q, k, v)[0]
    assert bool(((once - twice).norm(dim=-1) > 1e-3).all())
    torch.testing.assert_close(twice - mean, 2 * (once - mean))


def test_one_key_is_returned_whatever_the_score():
    q, k, v = draw(1)
    torch.testing.assert_close(inline(7 * q, k, v)[0], v)


def test_what_all_keys_share_does_not_matter():
    q, k, v = draw()
    torch.testing.assert_close(inline(q, k + torch.randn(5, dtype=torch.float64), v)[0], inline(q, k, v)[0])
