"""Exact attention against PyTorch's own, and its definition of rows that see nothing."""

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from gnomon.kernels.mask import CAUSAL, by_head
from gnomon.kernels.masks.atoms import disc, part, recent, same, sink
from gnomon.kernels.masks.grid import windows
from gnomon.kernels.masks.tokens import Tokens
from gnomon.kernels.op import recording
from gnomon.kernels.softmax.exact import OP, exact

pytestmark = pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")

RULES = {
    "window": CAUSAL & (recent(4) | sink(1)),
    "heads": by_head({(0, 3): recent(2)}, CAUSAL),
    "neighbourhood": windows((3, 3)),
    "disc": disc(1.5),
    "groups": part("y", 2) & part("x", 3),
    "causal groups": same("x") & CAUSAL,
}


def qkv(length: int = 24):
    torch.manual_seed(0)
    return [torch.randn(2, length, 4, 8, dtype=torch.float64, requires_grad=True) for _ in range(3)]


def torchs(q, k, v, dense):
    return scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v)), attn_mask=dense).transpose(1, 2)


@pytest.mark.parametrize("impl", OP.impls)
@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_equals_torch_under_any_mask(rule, impl):
    q, k, v = qkv()
    bound = rule.on(Tokens.grid(4, 6))
    truth = torchs(q, k, v, bound.dense(4).expand(2, 4, -1, -1))
    if impl == "flex":
        with torch.no_grad():
            torch.testing.assert_close(exact(q, k, v, mask=bound, impl=impl)[0], truth)
        return
    if impl == "group" and rule not in (RULES["groups"], RULES["causal groups"]):
        with pytest.raises(ValueError, match=r"exact: impl 'group' cannot run .*equivalence"):
            exact(q, k, v, mask=bound, impl=impl)
        return
    o, _ = exact(q, k, v, mask=bound, impl=impl)
    torch.testing.assert_close(o, truth)
    weight = torch.randn_like(o)
    ours, theirs = (torch.autograd.grad((x * weight).sum(), (q, k, v)) for x in (o, truth))
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("impl", ["reference", "chunk", "sdpa"])
def test_a_row_that_sees_nothing_is_zero(impl):
    q, k, v = qkv(5)
    dense = torch.ones(1, 1, 5, 5, dtype=torch.bool).tril(-1)
    o, _ = exact(q, k, v, mask=dense, impl=impl)
    assert bool((o[:, 0] == 0).all()) and bool((o[:, 1:] != 0).all())
    gradients = torch.autograd.grad(o.square().sum(), (q, k, v))
    assert all(bool(g.isfinite().all()) for g in gradients) and not bool(gradients[0][:, 0].any())


@pytest.mark.parametrize("impl", ["reference", "chunk", "sdpa"])
def test_where_nobody_sees_anything_gradients_are_zero(impl):
    q, k, v = qkv(5)
    o, _ = exact(q, k, v, mask=torch.zeros(1, 1, 5, 5, dtype=torch.bool), impl=impl)
    assert not bool(o.any())
    for g in torch.autograd.grad(o.sum(), (q, k, v)):
        assert not bool(g.any())


def test_auto_uses_groups_where_the_mask_is_an_equivalence():
    q, k, v = qkv()
    with recording() as choices:
        exact(q, k, v, mask=RULES["groups"].on(Tokens.grid(4, 6)))
        exact(q, k, v, mask=CAUSAL)
    assert [choice.used for choice in choices] == ["group", "sdpa"]
    assert "equivalence" in choices[1].passed_over["group"]


def test_a_cache_of_other_tokens_is_continued():
    q, k, v = qkv(6)
    whole, _ = exact(q, k, v, mask=CAUSAL)
    _, state = exact(q[:, :4], k[:, :4], v[:, :4], mask=CAUSAL)
    o, state = exact(q[:, 4:], k[:, 4:], v[:, 4:], mask=CAUSAL, state=state)
    torch.testing.assert_close(o, whole[:, 4:])
    torch.testing.assert_close(state["k"], k)


@pytest.mark.parametrize("queries", [1, 3])
@pytest.mark.parametrize("heads", [(6, 2, 2), (6, 3, 2), (2, 6, 2), (6, 6, 6)])
@pytest.mark.parametrize("dense", [False, True])
def test_shared_heads_are_as_if_repeated(queries, heads, dense):
    """A single query takes another path; a mask may be another one for every head, and hide all."""
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, t, n, 4, dtype=torch.float64) for t, n in zip((queries, 7, 7), heads))
    whole = [x.repeat_interleave(6 // x.shape[2], 2) for x in (q, k, v)]
    mask = torch.rand(2, 6, queries, 7) > 0.4 if dense else None
    if dense:
        mask[0, 1] = False
    for impl in ("sdpa", "chunk"):
        found, _ = exact(q, k, v, mask=mask, impl=impl)
        assert torch.allclose(found, exact(*whole, mask=mask, impl="reference")[0], atol=1e-12)


class Largest(TorchDispatchMode):
    """The most bytes that one operation has as its result."""

    bytes = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        found = function(*args, **(kwargs or {}))
        made = [x.untyped_storage().nbytes() for x in tree_leaves(found) if isinstance(x, torch.Tensor)]
        self.bytes = max(self.bytes, *made, 0)
        return found


def test_a_step_does_not_copy_what_it_reads():
    """One more token over a cache that four heads each share: nothing larger is made than the cache with that token."""
    cache = {name: torch.randn(1, 4096, 2, 64) for name in ("k", "v")}
    q, k, v = (torch.randn(1, 1, n, 64) for n in (8, 2, 2))
    with Largest() as seen:
        exact(q, k, v, mask=CAUSAL, state=cache, impl="sdpa")
    assert seen.bytes == cache["k"].nbytes + k.nbytes


@pytest.mark.parametrize("width, value_width", [(32, 64), (64, 32)])
def test_values_of_another_width_do_not_bring_all_scores_into_memory(width, value_width):
    q, k, v = (torch.randn(1, 1024, 2, n) for n in (width, width, value_width))
    with Largest() as seen:
        o, _ = exact(q, k, v, mask=CAUSAL, impl="sdpa")
    assert seen.bytes < 1024 * 1024
    assert torch.allclose(o, exact(q, k, v, mask=CAUSAL, impl="reference")[0], atol=1e-5)
