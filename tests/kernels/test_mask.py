"""Binding a mask: whom it was made for, what is kept with it, and what is not kept alive."""

import gc
import pickle
import weakref

import pytest
import torch

from gnomon.kernels.mask import CAUSAL, EVERYTHING, Given, bind, by_head
from gnomon.kernels.masks.atoms import part, recent, same, table
from gnomon.kernels.masks.tokens import Tokens
from gnomon.kernels.op import recording
from gnomon.kernels.softmax.exact import exact
from gnomon.kernels.sparse.neighborhood import neighborhood
from gnomon.kernels.sparse.power import power
from gnomon.kernels.sparse.radial import radial

# FlexAttention says that it is slow when it is not compiled; here it is only compared
pytestmark = pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")


def qkv(batch: int = 1, length: int = 8, heads: int = 4):
    return [torch.randn(batch, length, heads, 4, dtype=torch.float64) for _ in range(3)]


def dense(*size: int) -> torch.Tensor:
    return torch.ones(*size, dtype=torch.bool).tril()


ITEMS = Tokens.line(8).having(item=torch.arange(16).reshape(2, 8) % 3)
THREE = Tokens.line(8).having(item=torch.zeros(3, 8))
OTHERS = {
    "3 rows for a batch of 2": (dense(3, 1, 8, 8), 2),
    "3 rows for a batch of 1": (dense(3, 1, 8, 8), 1),
    "2 rows for a batch of 4": (same("item").on(ITEMS), 4),
    "2 rows for a batch of 1": (CAUSAL.on(Tokens.padded(torch.arange(8) < torch.tensor([[8], [5]]))), 1),
    "2 rows for a batch of 3": (Given(dense(2, 1, 8, 8)).on(THREE), 3),
    "2 heads for 4": (dense(1, 2, 8, 8), 1),
    "3 heads for 4": (CAUSAL & Given(dense(1, 3, 8, 8)), 1),
    "by_head names head 4 of 4": (CAUSAL & by_head({(0, 4): part("p", 2)}), 1),
    "6 heads for 4": (table(torch.ones(6, 8, 8, dtype=torch.bool)), 1),
}


@pytest.mark.parametrize("what", OTHERS)
def test_a_mask_for_others_is_refused(what):
    """By every implementation with the same line, and not tiled, cut or left out."""
    mask, batch = OTHERS[what]
    for impl in ("auto", "reference", "chunk", "sdpa", "group", "flex"):
        with pytest.raises(ValueError, match=rf"^mask: {what}; "):
            exact(*qkv(batch), mask=mask, impl=impl)


@pytest.mark.parametrize(
    "mask",
    [dense(1, 1, 9, 9), dense(1, 1, 8, 7), dense(8, 8), dense(1, 1, 8, 8).float()],
    ids=["longer", "fewer keys", "no heads", "no bool"],
)
@pytest.mark.parametrize(
    "operator", [exact, lambda q, k, v, mask: power(q, k, v, block=2, mask=mask)], ids=["alone", "beside a rule"]
)
def test_a_tensor_that_is_no_mask_of_these_tokens_is_refused(operator, mask):
    with pytest.raises(ValueError, match=r"^mask: a torch\.\w+ tensor of \(.*\) is no dense mask; .* 8, 8\)"):
        operator(*qkv(), mask=mask)


def test_one_row_and_one_head_stand_for_all():
    q, k, v = qkv(3)
    wanted, _ = exact(q, k, v, mask=CAUSAL, impl="reference")
    coarse = table(dense(1, 4, 4), block=2) & CAUSAL
    for mask in (dense(1, 1, 8, 8), dense(3, 1, 8, 8), dense(1, 4, 8, 8), dense(3, 4, 8, 8), coarse):
        for impl in ("reference", "chunk", "sdpa", "flex"):
            torch.testing.assert_close(exact(q, k, v, mask=mask, impl=impl)[0], wanted)


@pytest.mark.parametrize(
    "call",
    [
        lambda q, mask: power(q, q, q, block=2, mask=mask),
        lambda q, mask: neighborhood(q, q, q, window=(3,), grid=(8,), mask=EVERYTHING & Given(mask)),
        lambda q, mask: radial(q, q, q, grid=(2, 2, 2), mask=mask),
        lambda q, mask: exact(q, q, q, mask=Given(mask)),
    ],
    ids=["power", "neighborhood", "radial", "exact"],
)
def test_dense_masks_are_let_go(call):
    mask = dense(1, 1, 8, 8)
    alive = weakref.ref(mask)
    call(qkv()[0], mask)
    del mask
    gc.collect()
    assert alive() is None


def test_a_bound_mask_keeps_what_was_made_of_it():
    """Bound once and passed to every layer: an operator's own rule joins it once."""
    q, k, v = qkv(1, 16, 2)
    mask = EVERYTHING.on(Tokens.grid(4, 4))
    with recording() as choices:
        for _ in range(2):
            neighborhood(q, k, v, window=(3, 3), mask=mask)
        neighborhood(q, k, v, window=(2, 2), mask=mask)
    first, second, other = (choice.mask for choice in choices)
    assert first is second and first.cache and other is not first
    before = len(mask.cache)
    assert mask & Given(dense(1, 1, 16, 16)) is not mask & Given(dense(1, 1, 16, 16)) and len(mask.cache) == before


def test_a_bound_mask_is_pickled_without_what_was_made_of_it():
    """The predicate of flex is a function in a function, which pickle does not take."""
    mask = (CAUSAL & recent(3)).on(Tokens.line(8))
    exact(*qkv(), mask=mask, impl="flex")
    again = pickle.loads(pickle.dumps(mask))
    assert mask.cache and not again.cache and torch.equal(again.dense(), mask.dense())


def test_a_rule_is_bound_once():
    assert bind(recent(3), 5, 9) is bind(recent(3), 5, 9)
