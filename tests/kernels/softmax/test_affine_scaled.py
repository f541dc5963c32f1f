"""Affine-scaled attention against its matrix, under masks of all sorts."""

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from gnomon.kernels.mask import CAUSAL
from gnomon.kernels.masks.atoms import recent
from gnomon.kernels.masks.tokens import Tokens
from gnomon.kernels.softmax.affine_scaled import affine_scaled, clipped, visible_mean

MASKS = {"all": None, "causal": CAUSAL, "window": CAUSAL & recent(3)}


def draw():
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 8, 3, 4, dtype=torch.float64) for _ in range(3))
    return q, k, v, torch.rand(2, 8, 3, dtype=torch.float64), torch.rand(3, dtype=torch.float64)


def allowed(name: str):
    i, j = torch.arange(8)[:, None], torch.arange(8)[None]
    return {"all": i == i, "causal": j <= i, "window": (j <= i) & (j > i - 3)}[name] & (j == j)


@pytest.mark.parametrize("impl", ["reference", "sdpa"])
def test_an_average_that_is_a_number_is_not_rounded(impl):
    """With alpha 0, what comes out is the mean of the values times it."""
    q, k, v, alpha, _ = draw()
    o, _ = affine_scaled(q, k, v, alpha=0 * alpha, average=0.3, impl=impl)
    torch.testing.assert_close(o, 0.3 * v.mean(1, keepdim=True).expand_as(o), rtol=0, atol=1e-14)


@pytest.mark.parametrize("size", [(2,), (1, 3), (3, 1)])
def test_an_average_of_another_shape_is_refused(size):
    q, k, v, alpha, _ = draw()
    with pytest.raises(ValueError, match=r"^affine_scaled: average has shape .*; give a number, or \(3,\)$"):
        affine_scaled(q, k, v, alpha=alpha, average=torch.rand(size))


@pytest.mark.parametrize("impl", ["reference", "sdpa", "chunk"])
@pytest.mark.parametrize("name", MASKS)
def test_equals_the_matrix(name, impl):
    q, k, v, alpha, average = draw()
    seen = allowed(name)
    o, _ = affine_scaled(q, k, v, alpha=alpha, average=average, mask=MASKS[name], impl=impl)
    for row in range(2):
        for head in range(3):
            p = (q[row, :, head] @ k[row, :, head].T / 2).masked_fill(~seen, -torch.inf).softmax(-1)
            a = alpha[row, :, head, None]
            matrix = a * p + (average[head] - a) / seen.sum(-1, keepdim=True) * seen
            torch.testing.assert_close(matrix.sum(-1), average[head].expand(8))
            torch.testing.assert_close(o[row, :, head], matrix @ v[row, :, head])


def test_ones_are_attention():
    q, k, v, alpha, _ = draw()
    o, _ = affine_scaled(q, k, v, alpha=torch.ones_like(alpha), mask=CAUSAL)
    truth = scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v)), is_causal=True).transpose(1, 2)
    torch.testing.assert_close(o, truth)


@pytest.mark.parametrize("name", MASKS)
def test_equal_values_come_out_times_the_average(name):
    q, k, v, alpha, average = draw()
    o, _ = affine_scaled(q, k, torch.full_like(v, 7.0), alpha=alpha, average=average, mask=MASKS[name])
    torch.testing.assert_close(o, 7 * average[:, None].expand_as(o))


def test_the_mean_counts_visible_keys_and_not_padding():
    valid = torch.tensor([[True, True, False, True]])
    v = torch.tensor([1.0, 5.0, 100.0, 6.0]).reshape(1, 4, 1, 1)
    bound = CAUSAL.on(Tokens.padded(valid))
    assert visible_mean(v, bound).flatten().tolist() == [1, 3, 0, 4]
    assert visible_mean(v, bound, strip=3).flatten().tolist() == [1, 3, 0, 4]


def test_clipped():
    assert clipped(torch.tensor([-9.0, -5, 0, 2, 5, 9])).tolist() == pytest.approx([0, 0, 0.5, 0.7, 1, 1])


def test_refusal():
    q, k, v, alpha, _ = draw()
    with pytest.raises(ValueError, match=r"affine_scaled: alpha has shape \(2, 8\)"):
        affine_scaled(q, k, v, alpha=alpha[..., 0])


def test_alpha_of_fewer_heads_than_the_output_has():
    """The average is one for every head of the output."""
    q, k, v = (torch.randn(1, 9, n, 4, dtype=torch.float64) for n in (4, 2, 2))
    alpha, average = torch.rand(1, 9, 2, dtype=torch.float64), torch.rand(4, dtype=torch.float64)
    wide = alpha.repeat_interleave(2, 2)
    for impl in ("reference", "sdpa", "chunk"):
        found, _ = affine_scaled(q, k, v, alpha=alpha, average=average, mask=CAUSAL, impl=impl)
        wanted, _ = affine_scaled(q, k, v, alpha=wide, average=average, mask=CAUSAL, impl="reference")
        assert torch.allclose(found, wanted, atol=1e-12)
    with pytest.raises(ValueError, match=r"^affine_scaled: average has shape \(2,\); give a number, or \(4,\)$"):
        affine_scaled(q, k, v, alpha=alpha, average=average[:2])
