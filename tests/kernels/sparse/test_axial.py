"""Axial attention against PyTorch's own on the rows and columns themselves."""

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from gnomon.kernels.mask import CAUSAL
from gnomon.kernels.op import recording
from gnomon.kernels.sparse.axial import axial


def qkv():
    return [torch.randn(2, 4, 5, 3, 8, dtype=torch.float64) for _ in range(3)]


@pytest.mark.parametrize("mask", [None, CAUSAL], ids=["all", "causal"])
@pytest.mark.parametrize("along", ["x", "y"])
def test_each_row_or_column_is_dense(along, mask):
    q, k, v = qkv()
    with recording() as choices:
        o, _ = axial(*(x.flatten(1, 2) for x in (q, k, v)), grid=(4, 5), along=along, mask=mask)
    assert choices[0].used == "group"
    turned = [x if along == "x" else x.transpose(1, 2) for x in (q, k, v)]
    parts = [x.flatten(0, 1).transpose(1, 2) for x in turned]
    truth = scaled_dot_product_attention(*parts, is_causal=mask is not None).transpose(1, 2).unflatten(0, (2, -1))
    torch.testing.assert_close(o, (truth if along == "x" else truth.transpose(1, 2)).flatten(1, 2))


def test_two_layers_reach_everything(seen):
    row, column = (seen(axial, 20, grid=(4, 5), along=along).double() for along in ("x", "y"))
    assert int(row.sum()) == 20 * 5 and int(column.sum()) == 20 * 4
    assert bool((column @ row > 0).all())


def test_three_axes(seen):
    shown = seen(axial, 24, grid=(2, 3, 4), along="t")
    assert torch.equal(shown, torch.eye(12, dtype=torch.bool).repeat(2, 2))


def test_a_single_row_is_full_attention_and_rows_do_not_mix():
    q, k, v = (x.flatten(1, 2) for x in qkv())
    whole = scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v))).transpose(1, 2)
    torch.testing.assert_close(axial(q, k, v, grid=(1, 20))[0], whole)
    order = torch.tensor([2, 0, 3, 1])[:, None] * 5 + torch.arange(5)
    o, moved = axial(q, k, v, grid=(4, 5))[0], axial(*(x[:, order.flatten()] for x in (q, k, v)), grid=(4, 5))[0]
    torch.testing.assert_close(moved, o[:, order.flatten()])


def test_unknown_axis_is_refused():
    q = torch.randn(1, 20, 1, 4)
    with pytest.raises(ValueError, match=r"^axial: no axis 't'"):
        axial(q, q, q, grid=(4, 5), along="t")
