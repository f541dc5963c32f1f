"""scores: everything against the whole attention matrix, written out."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from gnomon.vlm.scores import Projected, average, columns, entropy, masses, rows

BATCH, HEADS, COUNT, WIDTH = 2, 4, 37, 8
CLOSE = {torch.float32: 1e-5, torch.bfloat16: 2e-3}

types = pytest.mark.parametrize("dtype", CLOSE, ids=["float32", "bfloat16"])
grouping = pytest.mark.parametrize("key_heads", [4, 2, 1])
masking = pytest.mark.parametrize("masked", [False, True], ids=["all", "masked"])
capping = pytest.mark.parametrize("softcap", [None, 2.0], ids=["plain", "softcap"])


def drawn(key_heads: int, dtype: torch.dtype, softcap: float | None = None) -> Projected:
    draw = torch.Generator().manual_seed(key_heads)
    queries = torch.randn(BATCH, HEADS, COUNT, WIDTH, generator=draw)
    keys = torch.randn(BATCH, key_heads, COUNT, WIDTH, generator=draw)
    return Projected((2 * queries).to(dtype), keys.to(dtype), WIDTH**-0.5, softcap)


def sight(masked: bool) -> Tensor | None:
    """Causal, with the second row's first five keys hidden, so that its first five queries see nothing."""
    mask = torch.ones(COUNT, COUNT, dtype=torch.bool).tril().repeat(BATCH, 1, 1)
    mask[1, :, :5] = False
    return mask if masked else None


def matrix(seen: Projected, mask: Tensor | None) -> Tensor:
    """(B,H,T,S) in the kernel's own order of operations: project, scale, cap, mask, softmax."""
    keys = seen.keys.repeat_interleave(HEADS // seen.keys.shape[1], 1)
    logits = torch.einsum("bhtd,bhsd->bhts", seen.queries.double(), keys.double()) * seen.scale
    if seen.softcap:
        logits = seen.softcap * (logits / seen.softcap).tanh()
    if mask is not None:
        logits = logits + torch.zeros(mask.shape).masked_fill(~mask, -math.inf)[:, None]
    return logits.softmax(-1).nan_to_num(0)


def same(found: Tensor, expected: Tensor, dtype: torch.dtype) -> None:
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), expected, atol=CLOSE[dtype], rtol=CLOSE[dtype])


@types
@grouping
@masking
@capping
def test_rows_and_columns(dtype, key_heads, masked, softcap):
    seen, mask = drawn(key_heads, dtype, softcap), sight(masked)
    whole = matrix(seen, mask)
    index = torch.tensor([[0, 36, 7], [36, 3, 20]])
    picked = None if mask is None else mask.gather(1, index[..., None].expand(-1, -1, COUNT))
    expected = torch.stack([whole[b][:, index[b]] for b in range(BATCH)])
    same(rows(seen, index, picked), expected, dtype)
    for chunk in (None, 1, 10, 100):
        same(columns(seen, mask, chunk=chunk), whole.sum(2), dtype)


@types
@grouping
@masking
def test_masses_of_segments(dtype, key_heads, masked):
    seen, mask = drawn(key_heads, dtype), sight(masked)
    # more segments than channels, and keys of none
    segment = torch.arange(COUNT).repeat(BATCH, 1) % 12 - 1
    whole = matrix(seen, mask)
    expected = torch.stack([whole[..., segment[0] == s].sum(-1) for s in range(11)], -1)
    same(masses(seen, segment, 11, mask), expected, dtype)


@types
@grouping
@masking
def test_centroid_and_entropy(dtype, key_heads, masked):
    seen, mask = drawn(key_heads, dtype), sight(masked)
    whole = matrix(seen, mask)
    place = torch.rand(BATCH, COUNT, 2)
    same(average(seen, place, mask), torch.einsum("bhts,bsa->bhta", whole, place.double()), dtype)
    same(entropy(seen, mask), -torch.special.xlogy(whole, whole).sum(-1), dtype)


@pytest.mark.parametrize("shift", [-40.0, 0.0, 40.0])
def test_entropy_is_precise_wherever_the_logits_are(shift: float):
    """A channel that adds the same number to every logit of every row changes no attention."""
    seen = drawn(4, torch.float32)
    ones = torch.ones(BATCH, HEADS, COUNT, 8)
    moved = replace(
        seen,
        queries=torch.cat([seen.queries, ones * shift / seen.scale / 8], 3),
        keys=torch.cat([seen.keys, ones], 3),
    )
    torch.testing.assert_close(entropy(moved), entropy(seen), atol=1e-4, rtol=0)


def test_entropy_of_equal_and_of_single_keys():
    seen = Projected(torch.zeros(1, 1, 3, 8), torch.randn(1, 1, 6, 8), 1.0)
    mask = torch.tensor([[[1, 1, 1, 1, 1, 1], [1, 1, 0, 0, 0, 0], [0, 0, 1, 0, 0, 0]]]).bool()
    expected = torch.tensor([[[math.log(6), math.log(2), 0.0]]])
    torch.testing.assert_close(entropy(seen, mask), expected, atol=1e-6, rtol=0)


def test_masses_have_the_gradient_of_the_matrix():
    queries = torch.randn(BATCH, HEADS, COUNT, WIDTH, requires_grad=True)
    keys = torch.randn(BATCH, 2, COUNT, WIDTH, requires_grad=True)
    segment = torch.arange(COUNT).repeat(BATCH, 1) % 3
    seen = Projected(queries, keys, 0.5)
    found = torch.autograd.grad(masses(seen, segment, 3)[..., 1].square().sum(), (queries, keys))
    mass = matrix(seen, None)[..., segment[0] == 1].sum(-1)
    expected = torch.autograd.grad(mass.square().sum(), (queries, keys))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


def test_one_head_is_the_product_of_all_channels():
    seen = drawn(4, torch.float32)
    flat = [x.permute(0, 2, 1, 3).reshape(BATCH, COUNT, HEADS * WIDTH) for x in (seen.queries, seen.keys)]
    expected = (flat[0] @ flat[1].mT / math.sqrt(HEADS * WIDTH)).softmax(-1)
    torch.testing.assert_close(columns(seen.one_head())[:, 0], expected.sum(1))


def test_a_soft_cap_has_no_fused_kernel():
    seen = drawn(2, torch.float32, softcap=2.0)
    for call in (entropy, lambda s: masses(s, torch.zeros(BATCH, COUNT, dtype=torch.long), 1)):
        with pytest.raises(ValueError, match=r"capped at 2\.0 has no fused kernel; use rows"):
            call(seen)
