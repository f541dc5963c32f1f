"""SLA: what is left of it at the ends of its shares, and its linear branch summed block by block."""

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from gnomon.kernels.sparse.sla import Plan, classify, sla

IMPLS = pytest.mark.parametrize("impl", ["reference", "chunk"])


def qkv(length: int = 37):
    torch.manual_seed(0)
    return [torch.randn(2, length, 3, 8, dtype=torch.float64) for _ in range(3)]


def full(q, k, v):
    return scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v))).transpose(1, 2)


@IMPLS
def test_all_critical_is_exact_attention_and_the_bias(impl):
    q, k, v = qkv()
    weight, bias = torch.randn(8, 8, dtype=torch.float64), torch.randn(8, dtype=torch.float64)
    how = {"critical": 1.0, "negligible": 0.0, "block_q": 8, "block_k": 4, "impl": impl}
    torch.testing.assert_close(sla(q, k, v, **how)[0], full(q, k, v))
    # nothing is marginal: the branch is zero, not NaN, and what its projection adds is the bias
    torch.testing.assert_close(sla(q, k, v, weight=weight, bias=bias, **how)[0], full(q, k, v) + bias)


@IMPLS
def test_a_projection_of_zero_leaves_the_sparse_branch(impl):
    q, k, v = qkv()
    weight = torch.zeros(8, 8, dtype=torch.float64, requires_grad=True)
    how = {"critical": 0.3, "block_q": 8, "block_k": 4, "impl": impl}
    o, _ = sla(q, k, v, weight=weight, **how)
    torch.testing.assert_close(o, sla(q, k, v, **how)[0])
    # and the projection still learns
    assert bool(torch.autograd.grad(o.square().sum(), weight)[0].any())


@IMPLS
@pytest.mark.parametrize("feature", ["softmax", "elu", "relu"])
def test_both_branches_block_by_block(impl, feature):
    """The linear branch as totals minus what is critical, as its authors' kernel forms it."""
    q, k, v = qkv(30)
    weight = torch.randn(8, 8, dtype=torch.float64)
    plan = Plan(block_q=5, block_k=6, critical=0.4, negligible=0.0)
    f = {"softmax": lambda x: x.softmax(-1), "elu": lambda x: torch.nn.functional.elu(x) + 1, "relu": torch.relu}[
        feature
    ]
    o, _ = sla(q, k, v, weight=weight, critical=0.4, negligible=0, block_q=5, block_k=6, feature=feature, impl=impl)
    critical, _ = classify(q, k, plan)
    assert critical.shape == (2, 3, 6, 2)
    for b, h, m in torch.cartesian_prod(torch.arange(2), torch.arange(3), torch.arange(6)):
        rows, keys, values = q[b, 5 * m : 5 * m + 5, h], k[b, :, h], v[b, :, h]
        near = (critical[b, h, m][:, None] * 6 + torch.arange(6)).flatten()
        sparse = ((rows @ keys[near].T) * 8**-0.5).softmax(-1) @ values[near]
        moment = f(keys).T @ values - f(keys[near]).T @ values[near]
        norm = f(keys).sum(0) - f(keys[near]).sum(0)
        linear = (f(rows) @ moment) / (f(rows) @ norm)[:, None]
        torch.testing.assert_close(o[b, 5 * m : 5 * m + 5, h], sparse + linear @ weight.T)


def test_classes():
    """The means of the blocks decide; 20 blocks of which 2 are critical and 4 negligible."""
    q, k, _ = qkv(80)
    plan = Plan(block_q=8, block_k=4, critical=0.1, negligible=0.2)
    critical, marginal = classify(q, k, plan)
    weights = (
        q.unflatten(1, (-1, 8)).mean(2).transpose(1, 2) @ k.unflatten(1, (-1, 4)).mean(2).permute(0, 2, 3, 1)
    ).softmax(-1)
    order = weights.argsort(-1, descending=True)
    assert torch.equal(critical, order[..., :2].sort(-1).values)
    expected = torch.zeros_like(marginal).scatter(-1, order[..., 2:16], True)
    assert torch.equal(marginal, expected)
    # what is added to all keys does not change the choice
    moved = classify(q, k + torch.randn(8, dtype=torch.float64), plan)
    assert torch.equal(moved[0], critical) and torch.equal(moved[1], marginal)


def test_short_last_block_counts_its_own_tokens():
    q, k, v = qkv(9)
    k[:, 8] = 3 * q[:, :8].mean(1)
    critical, _ = classify(q, k, Plan(block_q=8, block_k=4, critical=0.34, negligible=0.0))
    assert bool((critical[:, :, 0] == 2).all())
    o, _ = sla(q, k, v, critical=0.34, negligible=0, block_q=8, block_k=4)
    torch.testing.assert_close(o[:, :8], v[:, 8:].expand(-1, 8, -1, -1))


def test_refusals():
    q, k, v = qkv(8)
    for how, told in (
        ({"critical": 0.0}, "critical 0.0"),
        ({"critical": 0.95, "negligible": 0.1}, "sum to at most 1"),
        ({"feature": "cosine"}, "feature 'cosine' does not exist"),
        ({"weight": torch.zeros(3, 3)}, r"weight of \(3, 3\)"),
        ({"weight": torch.eye(v.shape[-1]), "bias": torch.zeros(1)}, r"bias of \(1,\)"),
        ({"bias": torch.zeros(8)}, "a bias without a weight"),
    ):
        with pytest.raises(ValueError, match=rf"^sla: .*{told}"):
            sla(q, k, v, **how)
