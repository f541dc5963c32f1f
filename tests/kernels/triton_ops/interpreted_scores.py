"""Attention rows and column sums of the kernels against the matrix written out; run by test_scores.py.

What the kernels write to is filled with NaN first.
"""

import math

import pytest
import torch
from torch import Tensor
from twins import DEVICE, EXACT, INTERPRETED

from gnomon.kernels.op import recording
from gnomon.kernels.scores import Limits, columns, rows
from gnomon.kernels.triton_ops import scores

pytestmark = pytest.mark.usefixtures("poison")

TOLERANCE = 1e-12 if INTERPRETED else 1e-5
BATCH, ROWS, KEYS = 2, 40, 83


def drawn(
    heads: int = 2, key_heads: int = 1, width: int = 20, dtype: torch.dtype = EXACT, count: int = ROWS
) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(width)
    q = torch.randn(BATCH, count, heads, width, generator=draw, dtype=torch.float64)
    k = torch.randn(BATCH, KEYS, key_heads, width, generator=draw, dtype=torch.float64)
    return (2 * q).to(DEVICE, dtype), k.to(DEVICE, dtype)


def limits() -> tuple[Limits, Tensor]:
    """Some rows that see nothing, windows, two documents and hidden keys; and the same as a matrix, entry by entry."""
    draw = torch.Generator().manual_seed(1)
    last = torch.randint(-1, KEYS, (BATCH, ROWS), generator=draw)
    first = (last - 30).clamp(min=0)
    of_row = torch.randint(0, 2, (BATCH, ROWS), generator=draw)
    of_key = torch.randint(-1, 2, (BATCH, KEYS), generator=draw)
    seen = torch.zeros(BATCH, ROWS, KEYS, dtype=torch.bool)
    for b in range(BATCH):
        for r in range(ROWS):
            for s in range(int(first[b, r]), int(last[b, r]) + 1):
                seen[b, r, s] = bool(of_row[b, r] == of_key[b, s])
    last, first, of_row, of_key, seen = (x.to(DEVICE) for x in (last, first, of_row, of_key, seen))
    return Limits(last, first, (of_row, of_key)), seen


def matrix(q: Tensor, k: Tensor, seen: Tensor | None = None, softcap: float | None = None) -> Tensor:
    k = k.repeat_interleave(q.shape[2] // k.shape[2], 2)
    logits = torch.einsum("brhd,bshd->bhrs", q.double(), k.double()) / math.sqrt(q.shape[3])
    if softcap is not None:
        logits = softcap * (logits / softcap).tanh()
    if seen is not None:
        logits = logits.masked_fill(~seen[:, None], -math.inf)
    return logits.softmax(-1).nan_to_num(0)


def same(found: Tensor, expected: Tensor, tolerance: float = TOLERANCE) -> None:
    torch.testing.assert_close(found.double(), expected, atol=tolerance, rtol=tolerance)


def check(q: Tensor, k: Tensor, sight=None, seen: Tensor | None = None, softcap: float | None = None, **how) -> None:
    whole = matrix(q, k, seen, softcap)
    given = {"sight": sight, "softcap": softcap, "impl": "triton"}
    same(rows(q, k, **given), whole, **how)
    same(rows(q, k, pooled=True, **given), whole.mean(1), **how)
    weight = torch.rand(q.shape[:2], device=q.device)
    same(columns(q, k, weight=weight, **given), (whole * weight[:, None, :, None]).sum(2), **how)


@pytest.mark.parametrize("heads, key_heads", [(4, 2), (3, 3)])
def test_everything_is_seen(heads, key_heads):
    q, k = drawn(heads, key_heads)
    check(q, k)
    same(columns(q, k, impl="triton"), matrix(q, k).sum(2))


@pytest.mark.parametrize("count", [1, 17])
def test_few_rows(count):
    check(*drawn(count=count))


def test_limits_and_masks():
    sight, seen = limits()
    check(*drawn(), sight, seen)
    check(*drawn(), seen, seen)
    check(*drawn(), Limits(sight.last), torch.arange(KEYS, device=DEVICE) <= sight.last[..., None])


def test_soft_cap():
    sight, seen = limits()
    check(*drawn(), sight, seen, softcap=1.5)


def test_a_head_as_wide_as_a_model():
    check(*drawn(width=150, count=20))


@pytest.mark.parametrize("programs", [1, 20, 1000])
def test_parts_of_the_keys(monkeypatch, programs):
    """One part, two, one for each block; some rows see nothing of a part."""
    monkeypatch.setattr(scores, "PROGRAMS", programs)
    sight, seen = limits()
    check(*drawn(), sight, seen)


def test_heads_first_and_views():
    """As a cache keeps keys, and as one projection gives queries."""
    q, k = drawn()
    q_first = q.transpose(1, 2).contiguous().transpose(1, 2)
    fused = torch.stack([k, k.flip(1)], 2)
    same(rows(q_first, fused[:, :, 0], impl="triton"), matrix(q, k))
    same(columns(q.mT.contiguous().mT, fused[:, :, 1], impl="triton"), matrix(q, k.flip(1)).sum(2))


def test_large_logits():
    q, k = drawn()
    check(100 * q, k)


def test_what_nobody_sees_may_be_anything():
    sight, seen = limits()
    q, k = drawn()
    hidden = k.masked_fill((sight.segments[1] < 0)[..., None, None], torch.nan)
    same(rows(q, hidden, sight=sight, impl="triton"), matrix(q, k, seen))
    same(columns(q, hidden, sight=sight, impl="triton"), matrix(q, k, seen).sum(2))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_narrow_types(dtype):
    """The inputs are what is rounded: against the matrix of the rounded ones, in float32."""
    q, k = drawn(dtype=dtype)
    assert rows(q, k, impl="triton").dtype == torch.float32
    check(q, k, tolerance=1e-5)


def test_chosen_by_itself_and_refused():
    q, k = drawn()
    with recording() as choices:
        rows(q, k)
        columns(q.requires_grad_(), k)
    assert [(c.op, c.used) for c in choices] == [("rows", "triton"), ("columns", "reference")]
    assert choices[1].passed_over == {"triton": "it has no backward"}
    with pytest.raises(ValueError, match=r"columns: impl 'triton' cannot run \(triton: it has no backward\)"):
        columns(q, k, impl="triton")
