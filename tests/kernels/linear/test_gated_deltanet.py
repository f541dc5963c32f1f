"""Gated DeltaNet against transformers' own recurrence, and its limits."""

import pytest
import torch
from transformers.models.qwen3_next.modeling_qwen3_next import torch_recurrent_gated_delta_rule

import gnomon.kernels.linear.base as base
from gnomon.kernels.linear.gated_deltanet import gated_deltanet
from gnomon.kernels.mask import CAUSAL

IMPLS = ["reference", "recurrent", "chunk"]


def inputs(length: int = 90) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, length, 3, 8, generator=generator) for _ in range(3))
    g = -2 * torch.rand(2, length, 3, generator=generator) ** 2
    return {"q": q, "k": k, "v": v, "g": g, "beta": torch.rand(2, length, 3, generator=generator)}


@pytest.mark.parametrize("impl", IMPLS)
def test_layer_of_qwen3_next(impl):
    """Outputs, final state and all gradients, with a state before the first token."""
    leaves = {name: x.requires_grad_() for name, x in inputs().items()}
    before = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1)).requires_grad_()
    q, k, v, g, beta = leaves.values()
    theirs, after = torch_recurrent_gated_delta_rule(
        q, k, v, g=g, beta=beta, initial_state=before, output_final_state=True, use_qk_l2norm_in_kernel=True
    )
    mine, state = gated_deltanet(q, k, v, g=g, beta=beta, normalize=True, mask=CAUSAL, state={"s": before}, impl=impl)
    torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(state["s"], after, rtol=1e-4, atol=1e-5)
    weights = torch.randn(theirs.shape, generator=torch.Generator().manual_seed(2))
    given = [*leaves.values(), before]
    expected = torch.autograd.grad((theirs * weights).sum() + after.sum(), given)
    for a, b in zip(torch.autograd.grad((mine * weights).sum() + state["s"].sum(), given), expected):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("impl", IMPLS)
def test_closed_gate_leaves_the_token_itself(impl):
    """o_t = scale beta_t (q_t k_t) v_t."""
    given = inputs() | {"g": torch.full((2, 90, 3), -200.0)}
    q, k, v, _, beta = given.values()
    o, _ = gated_deltanet(**given, mask=CAUSAL, scale=0.5, impl=impl)
    torch.testing.assert_close(o, 0.5 * (beta * (q * k).sum(-1))[..., None] * v)


def test_shared_queries_and_keys():
    """One head of q and k serves three of v, g and beta."""
    q, k, v, g, beta = inputs().values()
    q, k = (torch.nn.functional.normalize(x[:, :, :1], dim=-1) for x in (q, k))
    o, _ = gated_deltanet(q, k, v, g=g, beta=beta, mask=CAUSAL)
    theirs, _ = torch_recurrent_gated_delta_rule(q.expand_as(v), k.expand_as(v), v, g=g, beta=beta)
    torch.testing.assert_close(o, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("impl", IMPLS)
def test_open_gates_are_the_delta_rule(impl):
    """The state takes steps of beta down the gradient of |k S - v|^2 / 2, and nothing else."""
    q, k, v, _, beta = (x.double() for x in inputs(20).values())
    k = torch.nn.functional.normalize(k, dim=-1)
    o, _ = gated_deltanet(q, k, v, g=torch.zeros_like(beta), beta=beta, mask=CAUSAL, scale=1.0, impl=impl)
    s = torch.zeros(2, 3, 8, 8, dtype=torch.float64)
    for t in range(20):
        miss = torch.einsum("bhd,bhdv->bhv", k[:, t], s) - v[:, t]
        s = s - beta[:, t, :, None, None] * k[:, t, :, :, None] * miss[..., None, :]
        torch.testing.assert_close(o[:, t], torch.einsum("bhd,bhdv->bhv", q[:, t], s))


@pytest.mark.parametrize("core", [base.recurrent, base.chunk])
def test_without_beta_it_adds_to_a_fading_memory(core):
    """The recurrence beneath: weights exp(g_{j+1} + ... + g_i), as a matrix."""
    q, k, v, g, _ = (x.double() for x in inputs().values())
    empty = {"s": torch.zeros(2, 3, 8, 8, dtype=torch.float64)}
    o, _ = core(q, k, v, causal=True, scale=0.5, state=empty, g=g, beta=None)
    total = g.cumsum(1).transpose(1, 2)
    weights = (total[..., None] - total[..., None, :]).exp().tril()
    expected = torch.einsum("bqhd,bkhd,bhqk,bkhv->bqhv", q, k, weights, v) / 2
    torch.testing.assert_close(o, expected)
