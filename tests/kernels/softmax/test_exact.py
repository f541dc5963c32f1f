"""Exact attention against PyTorch's own, and its definition of rows that see nothing."""

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

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
