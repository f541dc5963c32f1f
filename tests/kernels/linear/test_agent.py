"""Agent attention as the product of two softmax matrices, and its pooling."""

import pytest
import torch

import gnomon.kernels.linear.agent as agent_file
from gnomon.kernels.linear.agent import OP, agent, table_bias

BOTH = pytest.mark.parametrize("impl", OP.impls)


def draw(tokens: int = 12, heads: int = 1):
    torch.manual_seed(0)
    return [torch.randn(1, tokens, heads, 4, dtype=torch.float64) for _ in range(3)]


@BOTH
def test_as_many_agents_as_tokens_are_two_softmaxes(impl):
    q, k, v = draw()
    x, y = q[0, :, 0], k[0, :, 0]
    truth = (x @ x.T / 2).softmax(-1) @ (x @ y.T / 2).softmax(-1) @ v[0, :, 0]
    torch.testing.assert_close(agent(q, k, v, grid=(3, 4), agents=(3, 4), impl=impl)[0][0, :, 0], truth)


@BOTH
def test_one_agent_is_one_pooled_value(impl):
    q, k, v = draw()
    weights = (k[0, :, 0] @ q[0, :, 0].mean(0) / 2).softmax(0)
    o, _ = agent(q, k, v, grid=(3, 4), agents=(1, 1), impl=impl)
    torch.testing.assert_close(o[0, :, 0], (weights @ v[0, :, 0]).expand(12, 4))


@BOTH
def test_weights_sum_to_one_and_have_the_rank_of_the_agents(impl):
    q, k, _ = draw()
    one_hot = torch.eye(12, dtype=torch.float64).reshape(1, 12, 1, 12)
    matrix = agent(q, k, one_hot, grid=(3, 4), agents=(2, 2), impl=impl)[0][0, :, 0]
    torch.testing.assert_close(matrix.sum(-1), torch.ones(12, dtype=torch.float64))
    assert torch.linalg.matrix_rank(matrix) <= 4


@BOTH
def test_class_tokens_look_but_are_not_pooled(impl):
    """A query in the prefix changes its own output and no other."""
    q, k, v = draw(13)
    before, _ = agent(q, k, v, grid=(3, 4), agents=(2, 2), prefix=1, impl=impl)
    q[:, 0] += 1
    after, _ = agent(q, k, v, grid=(3, 4), agents=(2, 2), prefix=1, impl=impl)
    torch.testing.assert_close(after[:, 1:], before[:, 1:])
    assert not torch.allclose(after[:, 0], before[:, 0])


@BOTH
def test_a_large_bias_decides(impl):
    """Every agent gathers from token 3 alone: all read its value."""
    q, k, v = draw()
    bias = torch.zeros(1, 4, 12, dtype=torch.float64)
    bias[..., 3] = 1e3
    o, _ = agent(q, k, v, grid=(3, 4), agents=(2, 2), bias_k=bias, impl=impl)
    torch.testing.assert_close(o, v[:, 3:4].expand_as(o))


def test_pooling_averages_the_bins():
    """2 x 4 tokens, 1 x 2 agents: means of the left and of the right four. A long scale lets each query pick one."""
    q = torch.zeros(1, 8, 1, 2, dtype=torch.float64)
    q[0, [0, 1, 4, 5], 0, 0], q[0, [2, 3, 6, 7], 0, 1] = 1, 1
    k = torch.eye(2, dtype=torch.float64)[[0, 1] * 4].reshape(1, 8, 1, 2)
    v = torch.tensor([5.0, 7.0] * 4, dtype=torch.float64).reshape(1, 8, 1, 1)
    o, _ = agent(q, k, v, grid=(2, 4), agents=(1, 2), scale=1e3)
    torch.testing.assert_close(o.flatten(), torch.tensor([5.0, 5, 7, 7] * 2, dtype=torch.float64))


def test_table_bias():
    """A table of constant 1 stays 1 at any size; rows, columns and class tokens add what they should."""
    rows, columns = torch.arange(2.0).reshape(1, 1, 2, 1), 10 * torch.arange(3.0).reshape(1, 1, 1, 3)
    bias = table_bias(torch.ones(1, 1, 7, 7), rows, columns, torch.full((1, 1, 1), -1.0))
    assert bias.flatten().tolist() == [-1, 1, 11, 21, 2, 12, 22]


def test_refusals():
    q, k, v = draw()
    with pytest.raises(ValueError, match=r"agent: 12 tokens do not fill 0 \+ 3 x 3; give 9"):
        agent(q, k, v, grid=(3, 3))
    with pytest.raises(ValueError, match=r"^agent: prefix -1 is no number of tokens; give 0 or more"):
        agent(*(x[:, 1:] for x in (q, k, v)), grid=(3, 4), prefix=-1)
    for how, told in (({"grid": (12,)}, r"grid \(12,\)"), ({"grid": (3, 4), "agents": (0, 2)}, r"agents \(0, 2\)")):
        with pytest.raises(ValueError, match=rf"^agent: {told} is impossible; give two extents"):
            agent(q, k, v, **how)
    with pytest.raises(ValueError, match=r"agent: bias_q has shape \(1, 4, 12\); give \(1, 12, 4\)"):
        agent(q, k, v, grid=(3, 4), agents=(2, 2), bias_q=torch.zeros(1, 4, 12))


@BOTH
def test_the_order_of_the_agents_does_not_matter(impl, monkeypatch):
    q, k, v = draw()
    before, _ = agent(q, k, v, grid=(3, 4), agents=(2, 2), impl=impl)
    pooled, other = agent_file.pool, torch.tensor([2, 0, 3, 1])
    monkeypatch.setattr(agent_file, "pool", lambda *given: pooled(*given)[:, other])
    after, _ = agent(q, k, v, grid=(3, 4), agents=(2, 2), impl=impl)
    torch.testing.assert_close(after, before)
    # biases belong to an agent each, and with them it does
    bias = torch.randn(1, 4, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    biased, _ = agent(q, k, v, grid=(3, 4), agents=(2, 2), bias_k=bias, impl=impl)
    monkeypatch.setattr(agent_file, "pool", pooled)
    assert not torch.allclose(agent(q, k, v, grid=(3, 4), agents=(2, 2), bias_k=bias, impl=impl)[0], biased)
    permuted, _ = agent(q, k, v, grid=(3, 4), agents=(2, 2), bias_k=bias[:, other.argsort()], impl=impl)
    torch.testing.assert_close(permuted, biased)
