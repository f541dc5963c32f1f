"""BlockRank: documents that know nothing of each other, and a question that knows all."""

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from gnomon.kernels.mask import CAUSAL, EVERYTHING
from gnomon.kernels.sparse.blockrank import blockrank

BLOCKS = torch.tensor([0] * 3 + [1] * 4 + [2] * 5 + [3] * 2 + [4] * 3)


def qkv(length: int = len(BLOCKS)):
    return [torch.randn(2, length, 2, 8, dtype=torch.float64) for _ in range(3)]


def test_who_sees_whom(seen):
    shown = seen(blockrank, len(BLOCKS), blocks=BLOCKS, mask=CAUSAL)
    for i, mine in enumerate(BLOCKS.tolist()):
        for j, other in enumerate(BLOCKS.tolist()):
            assert bool(shown[i, j]) == (j <= i and (mine == other or other == 0 or mine == 4))


def test_one_document_is_causal_attention():
    q, k, v = qkv()
    o, _ = blockrank(q, k, v, blocks=torch.tensor([0] * 3 + [1] * 10 + [2] * 4), mask=CAUSAL)
    whole = scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v)), is_causal=True).transpose(1, 2)
    torch.testing.assert_close(o, whole)


def test_order_of_the_documents_does_not_matter():
    q, k, v = qkv()
    o, _ = blockrank(q, k, v, blocks=BLOCKS, mask=CAUSAL)
    order = torch.cat([torch.where(b == BLOCKS)[0] for b in (0, 3, 1, 2, 4)])
    numbers = torch.tensor([0, 2, 3, 1, 4])[BLOCKS[order]]
    moved, _ = blockrank(q[:, order], k[:, order], v[:, order], blocks=numbers, mask=CAUSAL)
    torch.testing.assert_close(moved, o[:, order])


def test_rows_of_their_own_with_padding():
    q, k, v = qkv(8)
    rows = torch.tensor([[0, 0, 1, 1, 2, 2, 3, 3], [-1, -1, 0, 1, 1, 2, 2, 2]])
    poison = (rows < 0)[..., None, None]
    o, _ = blockrank(*(x.masked_fill(poison, torch.nan) for x in (q, k, v)), blocks=rows, mask=CAUSAL)
    torch.testing.assert_close(o[:1], blockrank(q[:1], k[:1], v[:1], blocks=rows[0], mask=CAUSAL)[0])
    alone = blockrank(q[1:, 2:], k[1:, 2:], v[1:, 2:], blocks=rows[1, 2:], mask=CAUSAL)[0]
    torch.testing.assert_close(o[1:, 2:], alone)
    assert not bool(o[1, :2].any())


def test_the_answer_continues_the_question():
    q, k, v = qkv()
    o, _ = blockrank(q, k, v, blocks=BLOCKS, mask=CAUSAL)
    torch.testing.assert_close(blockrank(q[:, -2:], k, v, blocks=BLOCKS, mask=CAUSAL)[0], o[:, -2:])


def test_refusals():
    q, k, v = qkv()
    with pytest.raises(ValueError, match=r"^blockrank: mask None lets tokens see the future"):
        blockrank(q, k, v, blocks=BLOCKS)
    with pytest.raises(ValueError, match=r"^blockrank: mask EVERYTHING lets tokens see the future"):
        blockrank(q, k, v, blocks=BLOCKS, mask=EVERYTHING)
    with pytest.raises(ValueError, match=r"^blockrank: blocks of \(5,\) for 17 keys"):
        blockrank(q, k, v, blocks=BLOCKS[:5], mask=CAUSAL)
