"""Tiles: another order of the tokens, the same attention; long enough for several tiles."""

import pytest
import torch

from gnomon.kernels.mask import CAUSAL, EVERYTHING, Given, by_head
from gnomon.kernels.masks.atoms import disc, part, prefix, recent, sink, visual
from gnomon.kernels.masks.grid import windows
from gnomon.kernels.masks.tokens import Tokens
from gnomon.kernels.sparse.base import cheapest, tile, tile_order

IMAGE = Tokens.grid(12, 17)
CASES = {
    "image": windows((5, 4)).on(IMAGE),
    "video": windows((2, 3, 3), causal=(True, False, False)).on(Tokens.grid(4, 6, 7)),
    "line": (CAUSAL & recent(9)).on(Tokens.line(150)),
    "heads": by_head({(1,): disc(3)}, part("y", 4)).on(IMAGE),
    "text and images": visual(windows((3, 3)), CAUSAL).on(
        Tokens.join([Tokens.line(70), Tokens.grid(9, 8), Tokens.line(5), Tokens.grid(3, 4, item=1)])
    ),
    "packed": CAUSAL.on(Tokens.packed(torch.tensor([0, 90, 91, 150]))),
    "padded": CAUSAL.on(Tokens.padded(torch.arange(140) < torch.tensor([[140], [71]]))),
    "most is seen by all": (CAUSAL | prefix(70)).on(Tokens.line(150)),
    "queries alone": recent(5).on(Tokens.line(70, start=80), Tokens.line(150)),
}


@pytest.mark.parametrize("block", [64, 128])
@pytest.mark.parametrize("bound", CASES.values(), ids=CASES)
def test_equals_masked_attention(bound, block):
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, n, 2, 8, dtype=torch.float64) for n in (bound.q.length, bound.k.length, bound.k.length))
    learned = [x.requires_grad_() for x in (q, k, v)]
    allowed = bound.dense(2)
    hidden = ~allowed & allowed.any(-1, keepdim=True)
    weights = torch.einsum("bqhd,bkhd->bhqk", q, k).masked_fill(hidden, -torch.inf).softmax(-1) * allowed
    truth = torch.einsum("bhqk,bkhd->bqhd", weights, v)
    o, _ = tile(q, k, v, mask=bound, scale=1.0, block=block)
    torch.testing.assert_close(o, truth)
    for ours, theirs in zip(*(torch.autograd.grad(x.sin().sum(), learned) for x in (o, truth))):
        torch.testing.assert_close(ours, theirs)


def test_backward_keeps_nothing_that_tiles_read():
    """Tiles read what others read too: gathered, keys and values would be kept many times. Kept are q, k, v, the
    output, and a logarithm for every 8 numbers of it.
    """
    x = torch.randn(1, 1280, 2, 8, requires_grad=True)
    bound, held = (CAUSAL & recent(256)).on(Tokens.line(1280)), {}

    def hold(x: torch.Tensor) -> torch.Tensor:
        held[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(hold, lambda x: x):
        tile(x, x.clone(), x.clone(), mask=bound, scale=1.0)
    size = x.untyped_storage().nbytes()
    assert sum(held.values()) == 4 * size + size // 8


@pytest.mark.parametrize(
    ("bound", "best"),
    [
        # every query sees the same keys, or a few of its own
        ((CAUSAL & sink(64)).on(Tokens.line(1024)), 256),
        (part("p", 64).on(Tokens.line(1024)), 64),
        # 64 queries read 320 keys, 128 read 384, 256 read 512
        ((CAUSAL & recent(256)).on(Tokens.line(4096)), 128),
    ],
)
def test_how_many_queries_are_read_for(bound, best):
    assert cheapest(bound, 2) == best


def test_gradients_of_many_tiles_are_summed_wide():
    """Every tile sees key 0: in bfloat16 the sum of so many small gradients would stop growing."""
    q, k, v = (torch.zeros(1, n, 1, 8, dtype=torch.bfloat16, requires_grad=True) for n in (64 * 512, 1, 1))
    o, _ = tile(q, k, v, mask=EVERYTHING.on(Tokens.line(64 * 512, start=1), Tokens.line(1)), scale=1.0)
    (dv,) = torch.autograd.grad(o.sum(), [v])
    assert dv.flatten().tolist() == [64 * 512] * 8


def test_a_given_mask_keeps_the_order_of_its_tokens():
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, 204, 1, 4, dtype=torch.float64) for _ in range(3))
    dense = torch.rand(1, 1, 204, 204) > 0.5
    o, _ = tile(q, k, v, mask=Given(dense).on(IMAGE), scale=1.0)
    scores = torch.einsum("bqhd,bkhd->bhqk", q, k).masked_fill(~dense, -torch.inf).softmax(-1)
    torch.testing.assert_close(o, torch.einsum("bhqk,bkhd->bqhd", scores, v))


def test_a_tile_is_a_square():
    order = tile_order(Tokens.grid(16, 24))
    first = order[:64]
    assert set((first // 24).tolist()) == set(range(8)) and set((first % 24).tolist()) == set(range(8))
    assert sorted(order.tolist()) == list(range(384)) and tile_order(Tokens.line(100)) is None
