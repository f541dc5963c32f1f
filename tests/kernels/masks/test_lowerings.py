"""All lowerings of a rule let the same pairs through."""

import pytest
import torch
from torch.nn.attention.flex_attention import create_mask

from gnomon.kernels.mask import CAUSAL, EVERYTHING, by_head, by_layer
from gnomon.kernels.masks import atoms, blocks, flex, groups
from gnomon.kernels.masks.grid import windows
from gnomon.kernels.masks.tokens import Tokens

HEADS = 4
GRID = Tokens.grid(5, 7)
VIDEO = Tokens.grid(2, 3, 5)
TEXT = Tokens.line(37)
DOCUMENTS = TEXT.having(item=torch.arange(37) // 9)
PACKED = Tokens.packed(torch.tensor([0, 5, 6, 30]))
PREFIXED = PACKED.having(seen=torch.tensor([2, 4, 19])[torch.repeat_interleave(torch.tensor([5, 1, 24]))])
PADDED = Tokens.padded(torch.arange(20) < torch.tensor([[20], [7]]))
MIXED = Tokens.join([Tokens.line(5), Tokens.grid(3, 4), Tokens.line(2), Tokens.grid(4, 2, item=1), Tokens.line(3)])

CASES = {
    "everything": (EVERYTHING, TEXT),
    "causal": (CAUSAL, TEXT),
    "packed": (CAUSAL, PACKED),
    "padded": (CAUSAL, PADDED),
    "window": (CAUSAL & (atoms.recent(6) | atoms.sink(2)), TEXT),
    "prefix": (CAUSAL | atoms.prefix(9), TEXT),
    "prefix by field": (CAUSAL | atoms.prefix("seen"), PREFIXED),
    "prefix by row": (CAUSAL | atoms.prefix("seen"), PADDED.having(seen=torch.tensor([[6], [3]]).expand(2, 20))),
    "documents": (atoms.same("item") & CAUSAL, DOCUMENTS),
    "documents by row": (
        atoms.same("item") & CAUSAL,
        TEXT.having(item=torch.arange(37) // torch.tensor([[9], [5]])),
    ),
    "ranking": (CAUSAL & (atoms.same("item") | atoms.k_is("item", 0) | atoms.q_is("item", 4)), DOCUMENTS),
    "neighbourhood": (windows((3, 4), stride=(1, 2), causal=(True, False)), GRID),
    "dilated": (windows((2, 3), dilation=(2, 2)), GRID),
    "video": (windows((2, 3, 2), causal=(True, False, False)), VIDEO),
    "band": (atoms.band("x", 2) & atoms.band("y", 1), GRID),
    "disc": (atoms.disc(2), GRID),
    "axial": (atoms.equal("y"), GRID),
    "blocks": (atoms.part("y", 2) & atoms.part("x", 3), GRID),
    "residues": (atoms.residue("y", 2) & atoms.residue("x", 3), GRID),
    "power": (atoms.power_of_two(4) & CAUSAL, TEXT),
    "table": (atoms.table(torch.tensor([[1, 0, 1], [0, 1, 1]]).bool(), block=(20, 13)), TEXT),
    "table by head": (atoms.table(torch.rand(HEADS, 5, 5, generator=torch.manual_seed(0)) > 0.5, block=8), TEXT),
    "columns": (CAUSAL & (atoms.columns(torch.tensor([3, 17])) | atoms.recent(2)), TEXT),
    "heads": (by_head({(0, 2): atoms.part("p", 8)}, atoms.part("p", 8, 4)) & CAUSAL, TEXT),
    "layers": (by_layer({(0,): CAUSAL, (3,): atoms.recent(5)}), TEXT),
    "not": (~atoms.band("p", 3), TEXT),
    "decoder": (atoms.visual(windows((3, 2)), CAUSAL), MIXED),
}
each = pytest.mark.parametrize("rule, tokens", CASES.values(), ids=CASES)


@each
def test_all_lowerings_agree(rule, tokens):
    bound = rule.on(tokens, layer=3)
    dense = bound.dense(HEADS)
    shape = (bound.rows, HEADS, tokens.length, tokens.length)
    torch.testing.assert_close(flex.densify(flex.block_mask(bound, heads=HEADS, block=8), bound, HEADS), dense)
    for block_q, block_k in ((8, 8), (4, 16), (64, 64)):
        lists = blocks.block_lists(bound, heads=HEADS, block_q=block_q, block_k=block_k)
        torch.testing.assert_close(lists.densify(bound, HEADS), dense)
        # a block left out holds nothing, a full one everything, and the lists of the keys name the same blocks
        assert not bool((dense & ~whole(lists.visited, lists, tokens.length)).any())
        assert bool((~whole(lists.dense()[0], lists, tokens.length) | dense).all())
        torch.testing.assert_close(lists.transposed().visited.mT, lists.visited)
        tiles = blocks.partial_pairs(lists, bound, HEADS, lambda pairs: pairs)
        assert int(tiles.sum()) + int(lists.full_count.sum()) * block_q * block_k == int(dense.sum())
    if (found := groups.groups(bound)) is not None:
        torch.testing.assert_close(groups.densify(found, bound).expand(shape), dense.expand(shape))


@each
def test_the_predicate_is_the_rule(rule, tokens):
    """Of FlexAttention: evaluated pair by pair, with scalars that it maps over, as torch's own maker of masks does."""
    bound = rule.on(tokens, layer=3)
    dense = bound.dense(HEADS)
    size = (bound.rows, HEADS, tokens.length, tokens.length)
    torch.testing.assert_close(create_mask(flex.mask_mod(bound), *size, device="cpu"), dense.expand(size))


def test_the_predicate_of_queries_elsewhere_than_the_keys():
    """The last tokens of both rows against all of them."""
    bound = (CAUSAL & (atoms.recent(4) | atoms.sink(2))).on(PADDED.take(torch.arange(14, 20)), PADDED)
    found = create_mask(flex.mask_mod(bound), 2, 1, 6, 20, device="cpu")
    torch.testing.assert_close(found, bound.dense())
    assert bool(found[0].any()) and not bool(found[1].any())


def whole(chosen, lists, length):
    pairs = chosen.repeat_interleave(lists.block[0], 2).repeat_interleave(lists.block[1], 3)
    return pairs[:, :, :length, :length]


def test_what_is_an_equivalence():
    found = {name for name, (rule, tokens) in CASES.items() if groups.groups(rule.on(tokens, layer=3)) is not None}
    assert found == {
        "everything",
        "causal",
        "packed",
        "padded",
        "documents",
        "documents by row",
        "axial",
        "blocks",
        "residues",
    }


def test_tokens_at_one_position_are_no_causal_group():
    tokens = TEXT.having(p=torch.arange(37) // 2)
    assert groups.groups(CAUSAL.on(tokens)) is None
    assert bool(CAUSAL.on(tokens).dense()[0, 0, 0, 1])


def test_blocks_of_many_queries_are_counted():
    """More than 16 bits hold: all see the first key, all but one the second."""
    bound = CAUSAL.on(Tokens.line(40_000), Tokens.line(2))
    lists = blocks.block_lists(bound, block_q=40_000, block_k=1)
    full, partial = lists.dense()
    assert full[0, 0].tolist() == [[True, False]] and partial[0, 0].tolist() == [[False, True]]


def test_visible_pairs_are_counted():
    """A window of 32 lets token i see min(i + 1, 32); of two heads one sees blocks of 128, one everything before."""
    assert blocks.visible_pairs(atoms.recent(32).on(Tokens.line(1000))) == sum(min(i + 1, 32) for i in range(1000))
    halves = (CAUSAL & by_head({(0,): atoms.part("p", 128)}, CAUSAL)).on(Tokens.line(1024))
    assert blocks.visible_pairs(halves, 2) == (8 * 128 * 129 / 2 + 1024 * 1025 / 2) / 2


@each
def test_visible_pairs_are_those_of_the_mask(rule, tokens):
    bound = rule.on(tokens, layer=3)
    for block in (4, 16, 64):
        expected = float(bound.dense(HEADS).float().mean((0, 1)).sum())
        assert blocks.visible_pairs(bound, HEADS, block=block) == pytest.approx(expected)
