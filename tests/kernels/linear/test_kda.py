"""Kimi Delta Attention: the order of fading and projecting, and the two operators it contains."""

import pytest
import torch
from transformers.models.qwen3_next.modeling_qwen3_next import torch_recurrent_gated_delta_rule

import gnomon.kernels.linear.base as base
from gnomon.kernels.linear.kda import kda
from gnomon.kernels.mask import CAUSAL

IMPLS = ["reference", "recurrent", "chunk"]


def tensor(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize("impl", IMPLS)
def test_fades_before_it_projects(impl):
    """S = (4, 8) fades to (4, 2); the key (1, 1) reads 6 there, and half of that is taken away: (1, -1).

    Projected first, (4, 8) would become (-2, 2), and then (-2, 0.5).
    """
    k, half = torch.ones(1, 1, 1, 2, dtype=torch.float64), torch.full((1, 1, 1), 0.5, dtype=torch.float64)
    g, v = tensor(1.0, 0.25).log().reshape(1, 1, 1, 2), torch.zeros(1, 1, 1, 1, dtype=torch.float64)
    before = {"s": tensor(4.0, 8.0).reshape(1, 1, 2, 1)}
    _, state = kda(k, k, v, g=g, beta=half, mask=CAUSAL, state=before, impl=impl)
    torch.testing.assert_close(state["s"].flatten(), tensor(1.0, -1.0))


@pytest.mark.parametrize("impl", IMPLS)
def test_equal_channels_are_gated_deltanet(impl):
    """As transformers computes it."""
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 90, 3, 8, generator=generator) for _ in range(3))
    g, beta = -torch.rand(2, 90, 3, generator=generator), torch.rand(2, 90, 3, generator=generator)
    theirs, after = torch_recurrent_gated_delta_rule(
        q, k, v, g=g, beta=beta, output_final_state=True, use_qk_l2norm_in_kernel=True
    )
    channels = g[..., None].expand_as(k)
    o, state = kda(q, k, v, g=channels, beta=beta, normalize=True, mask=CAUSAL, impl=impl)
    torch.testing.assert_close(o, theirs, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(state["s"], after, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("impl", IMPLS)
def test_orthonormal_keys_overwrite_what_is_left(impl):
    """Keys on the axes: channel c holds its last value, faded by the gates of channel c alone."""
    g = torch.tensor([[0.0, 0.0, 0.0], [-1.0, -2.0, -3.0], [-0.5, -4.0, -0.25], [-1.0, -1.0, -1.0]]).double()
    k = torch.eye(3, dtype=torch.float64)[[0, 1, 2, 0]]
    v = tensor(10.0, 20.0, 30.0, 40.0)
    four = {"q": k, "k": k, "v": v[:, None]}
    four = {name: x[None, :, None] for name, x in four.items()}
    _, state = kda(**four, g=g[None, :, None], beta=torch.ones(1, 4, 1), mask=CAUSAL, impl=impl)
    expected = tensor(40.0, 20.0, 30.0) * tensor(0.0, -4.0 - 1.0, -1.0).exp()
    torch.testing.assert_close(state["s"].flatten(), expected)


@pytest.mark.parametrize("impl", IMPLS)
def test_open_gates_are_the_delta_rule(impl):
    """As transformers computes it."""
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 40, 3, 8, generator=generator) for _ in range(3))
    beta = torch.rand(2, 40, 3, generator=generator)
    theirs, _ = torch_recurrent_gated_delta_rule(
        q, k, v, g=torch.zeros_like(beta), beta=beta, use_qk_l2norm_in_kernel=True
    )
    o, _ = kda(q, k, v, g=torch.zeros_like(k), beta=beta, normalize=True, mask=CAUSAL, impl=impl)
    torch.testing.assert_close(o, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("core", [base.recurrent, base.chunk])
def test_without_beta_it_is_gated_linear_attention(core):
    """The recurrence beneath: channel d of the pair (i, j) weighs exp(g_{j+1,d} + ... + g_{i,d})."""
    generator = torch.Generator().manual_seed(0)
    q, k, v, g = torch.randn(4, 1, 40, 2, 8, generator=generator, dtype=torch.float64)
    total = -g.square().cumsum(1)
    empty = {"s": torch.zeros(1, 2, 8, 8, dtype=torch.float64)}
    o, _ = core(q, k, v, causal=True, scale=0.5, state=empty, g=-g.square(), beta=None)
    for t in range(40):
        weights = (q[:, t, None] * k[:, : t + 1] * (total[:, t, None] - total[:, : t + 1]).exp()).sum(-1) / 2
        torch.testing.assert_close(o[:, t], torch.einsum("bkh,bkhv->bhv", weights, v[:, : t + 1]))
