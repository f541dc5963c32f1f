"""DeltaNet: what it is for, overwriting, and its gradient step."""

import pytest
import torch

from gnomon.kernels.linear.deltanet import deltanet
from gnomon.kernels.mask import CAUSAL

IMPLS = ["reference", "recurrent", "chunk"]


def keys(count: int, width: int, seed: int = 0) -> torch.Tensor:
    """Orthonormal rows."""
    x = torch.randn(width, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.linalg.qr(x)[0][:count]


@pytest.mark.parametrize("impl", IMPLS)
def test_overwrites(impl):
    """Key 2 gets a second value: it reads the new one, and the others read theirs."""
    k = keys(6, 8)
    order = [0, 1, 2, 3, 4, 5, 2]
    v = torch.randn(7, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    bound = k[order][None, :, None]
    _, state = deltanet(bound, bound, v[None, :, None], beta=torch.ones(1, 7, 1), mask=CAUSAL, impl=impl)
    torch.testing.assert_close(k @ state["s"][0, 0], v[[0, 1, 6, 3, 4, 5]])


@pytest.mark.parametrize("impl", IMPLS)
def test_last_pair_is_always_exact(impl):
    """With beta = 1 the key that was just written reads its value, however full the memory is."""
    generator = torch.Generator().manual_seed(0)
    k = torch.nn.functional.normalize(torch.randn(1, 90, 2, 4, generator=generator, dtype=torch.float64), dim=-1)
    v = torch.randn(1, 90, 2, 5, generator=generator, dtype=torch.float64)
    o, _ = deltanet(k, k, v, beta=torch.ones(1, 90, 2), mask=CAUSAL, scale=1.0, impl=impl)
    torch.testing.assert_close(o, v)


@pytest.mark.parametrize("impl", IMPLS)
def test_is_a_gradient_step(impl):
    """S_t = S - beta d/dS |k S - v|^2 / 2, the derivative taken by autograd."""
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, 6, 1, 4, generator=generator, dtype=torch.float64) for _ in range(3))
    beta = torch.rand(1, 6, 1, generator=generator, dtype=torch.float64)
    s, expected = torch.zeros(4, 4, dtype=torch.float64), []
    for t in range(6):
        s = s.detach().requires_grad_()
        miss = (k[0, t, 0] @ s - v[0, t, 0]).square().sum() / 2
        s = s - beta[0, t, 0] * torch.autograd.grad(miss, s)[0]
        expected.append(q[0, t, 0] @ s / 2)
    o, _ = deltanet(q, k, v, beta=beta, mask=CAUSAL, impl=impl)
    torch.testing.assert_close(o[0, :, 0], torch.stack(expected))


def test_nothing_is_written_twice():
    """The same pair again changes nothing; beta = 0 changes nothing."""
    k, v = keys(1, 4)[None, None].expand(1, 3, 1, 4), torch.ones(1, 3, 1, 2, dtype=torch.float64)
    states = [
        deltanet(k[:, :n], k[:, :n], v[:, :n], beta=torch.tensor([1.0, b, 0.0]).reshape(1, 3, 1)[:, :n], mask=CAUSAL)
        for n, b in ((1, 1.0), (3, 1.0), (3, 0.0))
    ]
    for _, state in states[1:]:
        torch.testing.assert_close(state, states[0][1])


def test_normalize():
    """Keys and queries of any length, as if they came with length one."""
    generator = torch.Generator().manual_seed(0)
    q, k, v = (10 * torch.randn(1, 70, 2, 4, generator=generator, dtype=torch.float64) for _ in range(3))
    beta = torch.rand(1, 70, 2, generator=generator, dtype=torch.float64)
    o, _ = deltanet(q, k, v, beta=beta, normalize=True, mask=CAUSAL)
    q, k = (torch.nn.functional.normalize(x, dim=-1) for x in (q, k))
    torch.testing.assert_close(o, deltanet(q, k, v, beta=beta, mask=CAUSAL)[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("impl", IMPLS)
def test_a_token_never_stretches_the_state(impl):
    """Its transition, read off with values of zero from a state that is the identity, has no singular value above 1."""
    generator = torch.Generator().manual_seed(0)
    k = torch.nn.functional.normalize(torch.randn(50, 1, 1, 4, generator=generator, dtype=torch.float64), dim=-1)
    beta = torch.linspace(0, 2, 50, dtype=torch.float64).reshape(50, 1, 1)
    identity = {"s": torch.eye(4, dtype=torch.float64).expand(50, 1, 4, 4)}
    _, state = deltanet(k, k, torch.zeros_like(k), beta=beta, mask=CAUSAL, state=identity, impl=impl)
    norms = torch.linalg.matrix_norm(state["s"][:, 0], 2)
    torch.testing.assert_close(norms, torch.ones(50, dtype=torch.float64))
    # the key itself is stretched by 1 - beta
    torch.testing.assert_close((k[:, 0] @ state["s"][:, 0])[:, 0], (1 - beta[:, 0]) * k[:, 0, 0])
