"""S2: each half of the heads is causal attention on its own groups, and nothing comes from the future."""

import itertools

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from gnomon.kernels.mask import CAUSAL, by_head
from gnomon.kernels.masks.atoms import part
from gnomon.kernels.op import recording
from gnomon.kernels.sparse.s2 import s2


def qkv(length: int = 24, key_heads: int = 4):
    return [torch.randn(2, length, heads, 8, dtype=torch.float64) for heads in (4, key_heads, key_heads)]


@pytest.mark.parametrize("impl", ["reference", "group", "tile"])
def test_both_halves(impl):
    q, k, v = qkv()
    o, _ = s2(q, k, v, mask=CAUSAL, impl=impl)
    # a quarter of 24 is 6; the others begin with half of that and end with it
    for heads, ends in ((slice(0, 2), [0, 6, 12, 18, 24]), (slice(2, 4), [0, 3, 9, 15, 21, 24])):
        for a, b in itertools.pairwise(ends):
            part = [x[:, a:b, heads].transpose(1, 2) for x in (q, k, v)]
            truth = scaled_dot_product_attention(*part, is_causal=True).transpose(1, 2)
            torch.testing.assert_close(o[:, a:b, heads], truth)


def test_groups_are_chosen_and_heads_of_keys_stay_whole():
    q, k, v = qkv(key_heads=2)
    with recording() as choices:
        o, _ = s2(q, k, v, mask=CAUSAL, group=8)
    assert choices[0].used == "group"
    wide = [x.repeat_interleave(2, 2) for x in (k, v)]
    torch.testing.assert_close(o, s2(q, *wide, mask=CAUSAL, group=8, impl="reference")[0])


@pytest.mark.parametrize("heads", [(0,), (0, 1), (1, 3)])
def test_heads_that_the_mask_tells_apart(heads):
    """The caller's heads are its own, be they the halves or others; here each rule of theirs is within the group."""
    q, k, v = qkv(8)
    with recording() as choices:
        o, _ = s2(q, k, v, group=8, mask=CAUSAL & by_head({heads: part("p", 2)}, part("p", 4)))
    assert (choices[0].used == "group") == (heads == (0, 1))
    for head in range(4):
        size = 2 if head in heads else 4
        for a in range(0, 8, size):
            both = [x[:, a : a + size, head : head + 1].transpose(1, 2) for x in (q, k, v)]
            truth = scaled_dot_product_attention(*both, is_causal=True).transpose(1, 2)
            torch.testing.assert_close(o[:, a : a + size, head : head + 1], truth)


@pytest.mark.parametrize("impl", ["reference", "group", "tile"])
def test_more_heads_of_values(impl):
    """The halves are those of the outputs."""
    q, k, v = (torch.randn(1, 12, heads, 8, dtype=torch.float64) for heads in (2, 2, 4))
    wide = [x.repeat_interleave(2, 2) for x in (q, k)]
    o, _ = s2(q, k, v, mask=CAUSAL, group=4, impl=impl)
    torch.testing.assert_close(o, s2(*wide, v, mask=CAUSAL, group=4, impl="reference")[0])


def test_the_beginning_does_not_see_the_end(seen):
    """What rolling the tokens gets wrong."""
    shown = seen(s2, 16, heads=2, group=4)
    assert not bool(shown[1, :2, 2:].any()) and not bool(shown[:, :, :].all())
    assert not bool(seen(s2, 16, heads=2, group=4, mask=CAUSAL).triu(1).any())


def test_two_layers_join_neighbouring_groups(seen):
    shown = seen(s2, 16, heads=2, group=4, mask=CAUSAL).any(0).double()
    twice = shown @ shown
    assert all(bool(twice[4 * g + 3, 4 * g - 1] > 0) for g in (1, 2, 3))


def test_group_of_one_whole_sequence_is_causal():
    q, k, v = qkv(12)
    o, _ = s2(q[:, :, :2], k[:, :, :2], v[:, :, :2], mask=CAUSAL, group=24)
    part = [x[:, :, :1].transpose(1, 2) for x in (q, k, v)]
    torch.testing.assert_close(o[:, :, :1], scaled_dot_product_attention(*part, is_causal=True).transpose(1, 2))


def test_refusals():
    q, k, v = qkv(8)
    with pytest.raises(ValueError, match=r"^s2: 1 queries for 8 keys"):
        s2(q[:, -1:], k, v, mask=CAUSAL)
    with pytest.raises(ValueError, match=r"^s2: cu_seqlens without a size"):
        s2(q[:1], k[:1], v[:1], mask=CAUSAL, cu_seqlens=torch.tensor([0, 8]))
    with pytest.raises(ValueError, match=r"^s2: a group of 1 cannot be shifted"):
        s2(q, k, v, mask=CAUSAL, group=1)
    with pytest.raises(ValueError, match=r"^s2: 1 head cannot be shifted"):
        s2(*(x[:, :, :1] for x in (q, k, v)), mask=CAUSAL)
