"""Outputs and all gradients of the block-sparse kernels against the references; run by test_blocks.py.

What the kernels write to is filled with NaN first.
"""

import pytest
import torch
from twins import DEVICE, INTERPRETED, TOLERANCE, agree, tensors

from gnomon.kernels import attend
from gnomon.kernels.mask import CAUSAL, Given, by_head
from gnomon.kernels.masks.atoms import part, recent, sink
from gnomon.kernels.masks.grid import windows
from gnomon.kernels.masks.tokens import Tokens
from gnomon.kernels.op import recording
from gnomon.kernels.sparse.infllm_v2 import infllm_v2
from gnomon.kernels.sparse.neighborhood import neighborhood
from gnomon.kernels.sparse.sla import sla
from gnomon.kernels.triton_ops.sparse import blocks
from gnomon.kernels.triton_ops.sparse.lists import from_mask

pytestmark = pytest.mark.usefixtures("poison")

INFLLM = {"top": 3, "block": 4, "local": 0, "first": 1, "pool": 4, "stride": 2, "dense_length": 0}


IMAGE = Tokens.grid(9, 8, device=DEVICE)
MASKS = {
    "window": (CAUSAL & (recent(9) | sink(2))).on(Tokens.line(37, device=DEVICE)),
    "heads": by_head({(0,): part("y", 3)}, windows((3, 5))).on(IMAGE),
    "padded rows": CAUSAL.on(Tokens.padded((torch.arange(20) < torch.tensor([[20], [7]])).to(DEVICE))),
    "last queries": recent(6).on(Tokens.line(5, start=28, device=DEVICE), Tokens.line(33, device=DEVICE)),
    "rows that see nothing": Given(torch.ones(1, 1, 19, 19, dtype=torch.bool, device=DEVICE).tril(-1)).on(
        Tokens.line(19, device=DEVICE)
    ),
}


@pytest.mark.parametrize("bound", MASKS.values(), ids=MASKS)
def test_mask(bound):
    """Blocks of 16, so that there are whole, partial and empty ones."""
    inputs = tensors((2, bound.q.length, 2, 8), (2, bound.k.length, 2, 8), (2, bound.k.length, 2, 5))
    lists = from_mask(bound, heads=2, block_q=16, block_k=16)
    agree(
        lambda q, k, v: blocks.sparse(q, k, v, lists=lists, scale=0.3),
        lambda q, k, v: attend.reference(q, k, v, mask=bound, scale=0.3)[0],
        inputs,
    )


def test_neighborhood_in_tiles():
    """Three tiles and a rest."""
    inputs = tensors((1, 208, 1, 8), (1, 208, 1, 8), (1, 208, 1, 8))
    how = {"grid": (16, 13), "window": (5, 3)}
    with recording() as choices:
        agree(
            lambda q, k, v: neighborhood(q, k, v, **how)[0],
            lambda q, k, v: neighborhood(q, k, v, impl="reference", **how)[0],
            inputs,
        )
    assert choices[0].used == "triton"


def test_grids_of_many_rows(monkeypatch):
    """CUDA's limits: 2147483647 programs along x, 65535 along y and z. Nothing is run here."""
    grids = []
    monkeypatch.setattr(type(blocks.forward), "__getitem__", lambda kernel, grid: lambda **given: grids.append(grid))
    (q,) = tensors((70_000, 1, 1, 8))
    lists = from_mask(CAUSAL.on(Tokens.line(1, device=DEVICE)), heads=1)
    blocks.sparse(q, q, q, lists=lists, scale=1.0).sum().backward()
    assert len(grids) == 4
    for x, y, z in ((*grid, 1, 1)[:3] for grid in grids):
        assert x * y * z >= 70_000 and x < 2**31 and max(y, z) <= 65535


@pytest.mark.parametrize("feature", ["softmax", "relu"])
def test_sla(feature):
    """The linear branch included; the last blocks are short, and 19 wide is no power of two."""
    inputs = tensors((1, 45, 2, 19), (1, 39, 2, 19), (1, 39, 2, 8), (8, 8), (8,))
    how = {"block_q": 16, "block_k": 8, "critical": 0.4, "negligible": 0.2, "feature": feature}
    agree(
        lambda q, k, v, weight, bias: sla(q, k, v, weight=weight, bias=bias, impl="triton", **how)[0],
        lambda q, k, v, weight, bias: sla(q, k, v, weight=weight, bias=bias, impl="reference", **how)[0],
        inputs,
    )


def test_sla_in_several_tiles():
    """Blocks longer than a tile and no multiple of it, the last ones short."""
    inputs = tensors((1, 130, 1, 8), (1, 110, 1, 8), (1, 110, 1, 40), (40, 40))
    how = {"block_q": 80, "block_k": 40, "critical": 0.34, "negligible": 0.0}
    agree(
        lambda q, k, v, weight: sla(q, k, v, weight=weight, impl="triton", **how)[0],
        lambda q, k, v, weight: sla(q, k, v, weight=weight, impl="reference", **how)[0],
        inputs,
    )


def test_sla_where_nothing_is_marginal():
    inputs = tensors((1, 20, 1, 8), (1, 20, 1, 8), (1, 20, 1, 8), (8, 8))
    how = {"block_q": 16, "block_k": 16, "critical": 1.0, "negligible": 0.0}
    agree(
        lambda q, k, v, weight: sla(q, k, v, weight=weight, impl="triton", **how)[0],
        lambda q, k, v, weight: sla(q, k, v, weight=weight, impl="reference", **how)[0],
        inputs,
    )


def test_infllm_v2():
    """Three query heads share a key head; then the last tokens again, as decoding sees them."""
    inputs = tensors((1, 23, 6, 8), (1, 23, 2, 8), (1, 23, 2, 8))
    agree(
        lambda q, k, v: infllm_v2(q, k, v, mask=CAUSAL, impl="triton", **INFLLM)[0],
        lambda q, k, v: infllm_v2(q, k, v, mask=CAUSAL, impl="reference", **INFLLM)[0],
        inputs,
    )
    q, k, v = (x.detach() for x in inputs)
    whole, _ = infllm_v2(q, k, v, mask=CAUSAL, impl="reference", **INFLLM)
    _, state = infllm_v2(q[:, :21], k[:, :21], v[:, :21], mask=CAUSAL, impl="reference", **INFLLM)
    o, _ = infllm_v2(q[:, 21:], k[:, 21:], v[:, 21:], mask=CAUSAL, state=state, impl="triton", **INFLLM)
    torch.testing.assert_close(o, whole[:, 21:], rtol=TOLERANCE, atol=TOLERANCE)


@pytest.mark.parametrize(
    "operator",
    [
        lambda q, impl: neighborhood(q, q, q, grid=(5, 7), window=(3, 3), impl=impl),
        lambda q, impl: sla(q, q, q, block_q=16, block_k=16, impl=impl),
        lambda q, impl: infllm_v2(q, q, q, mask=CAUSAL, impl=impl, **INFLLM),
    ],
    ids=["neighborhood", "sla", "infllm_v2"],
)
def test_bfloat16(operator):
    """The interpreter makes nonsense of its products: there another implementation is taken."""
    torch.manual_seed(0)
    q = torch.randn(1, 35, 1, 16, device=DEVICE).bfloat16()
    with recording() as choices:
        o, _ = operator(q, "auto")
    assert (choices[0].used == "triton") == (not INTERPRETED)
    torch.testing.assert_close(o, operator(q, "reference")[0], rtol=2e-2, atol=2e-2)
    if INTERPRETED:
        with pytest.raises(ValueError, match=r"interpreter has no products of bfloat16"):
            operator(q, "triton")


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.float16, 1e-2)], ids=["float32", "float16"])
def test_narrow_types(dtype, tolerance):
    inputs = tensors((1, 40, 1, 16), (1, 40, 1, 16), (1, 40, 1, 16), (16, 16), dtype=dtype)
    how = {"block_q": 16, "block_k": 16, "critical": 0.34, "negligible": 0.0}
    agree(
        lambda q, k, v, weight: sla(q, k, v, weight=weight, impl="triton", **how)[0],
        lambda q, k, v, weight: sla(q, k, v, weight=weight, impl="reference", **how)[0],
        inputs,
        tolerance if INTERPRETED else max(tolerance, 1e-3),
    )
