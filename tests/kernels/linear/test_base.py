"""The chunked recurrence under gates as strong as they come, over several chunks, against the loop over tokens."""

import pytest
import torch

from gnomon.kernels.linear.base import chunk, decayed, recurrent

WIDTHS = {"none": None, "scalar": (), "vector": (8,)}


def inputs(gates: str, strength: float, dtype: torch.dtype = torch.float64, length: int = 150):
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, length, 3, 8, generator=generator, dtype=torch.float64) for _ in range(3))
    k = k / k.norm(dim=-1, keepdim=True)
    beta = 2 * torch.rand(2, length, 3, generator=generator, dtype=torch.float64)
    given = {"q": q, "k": k, "v": v, "beta": beta}
    if gates != "none":
        size = (2, length, 3, *WIDTHS[gates])
        # mostly weak, some very strong
        given["g"] = -strength * torch.rand(*size, generator=generator, dtype=torch.float64) ** 6
    given["s"] = torch.randn(2, 3, 8, 8, generator=generator, dtype=torch.float64)
    return {name: x.to(dtype).requires_grad_() for name, x in given.items()}


def run(form, given, **how):
    rest = {name: given.get(name) for name in ("g", "beta") if name not in how}
    o, state = form(
        given["q"], given["k"], given["v"], causal=True, scale=0.3, state={"s": given["s"]}, **{**rest, **how}
    )
    loss = (o * torch.linspace(-1, 1, o.numel(), dtype=o.dtype).reshape(o.shape)).sum() + state["s"].square().sum()
    return o, state["s"], *torch.autograd.grad(loss, list(given.values()), allow_unused=True)


@pytest.mark.parametrize("delta", [True, False])
@pytest.mark.parametrize(
    "gates, strength", [("none", 0), ("scalar", 1), ("scalar", 2000), ("vector", 1), ("vector", 2000)]
)
def test_chunks_equal_tokens(gates, strength, delta):
    """The loop never forms a sum of gates, so it cannot be wrong about one."""
    given = inputs(gates, strength)
    how = {} if delta else {"beta": None}
    expected = run(recurrent, given, **how)
    for block in (1, 16, 64, 200):
        for mine, theirs in zip(run(chunk, given, block=block, **how), expected):
            assert (mine is None) == (theirs is None)
            if mine is not None:
                torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("gates", ["scalar", "vector"])
def test_gates_of_zero_reset(gates):
    """log decay -inf: finite, and what follows knows nothing of what was before."""
    given = inputs(gates, 1.0)
    g = given["g"].detach().clone()
    g[:, 70] = -torch.inf
    given["g"] = g.requires_grad_()
    whole = run(chunk, given)
    assert all(bool(x.isfinite().all()) for x in whole)
    rest = {name: x[:, 70:] for name, x in given.items() if name != "s"}
    alone, _ = recurrent(
        rest["q"], rest["k"], rest["v"], causal=True, scale=0.3, state={"s": torch.zeros(2, 3, 8, 8).double()},
        g=torch.cat([torch.zeros_like(rest["g"][:, :1]), rest["g"][:, 1:]], 1), beta=rest["beta"],
    )  # fmt: skip
    torch.testing.assert_close(whole[0][:, 70:], alone)


@pytest.mark.parametrize("gates", ["scalar", "vector"])
@pytest.mark.parametrize("strength", [0.1, 90.0, 5000.0])
def test_single_precision(gates, strength):
    """float32 neither overflows nor loses the weak gates between the strong ones."""
    exact = run(recurrent, inputs(gates, strength))
    single = run(chunk, inputs(gates, strength, torch.float32))
    for mine, theirs in zip(single, exact):
        error = (mine.double() - theirs).detach().abs().max() / theirs.detach().abs().max()
        assert error.item() < 1e-5


def test_decayed_by_hand():
    """Width one, q = k = 1: the matrix of decays itself."""
    ones, g = torch.ones(4, 1), torch.tensor([[5.0], [-1.0], [-2.0], [-3.0]])
    logs = torch.tensor([[0.0, 0, 0, 0], [-1, 0, 0, 0], [-3, -2, 0, 0], [-6, -5, -3, 0]])
    torch.testing.assert_close(decayed(ones, ones, g), logs.exp().tril())
    torch.testing.assert_close(decayed(ones.expand(4, 2) / 2, ones.expand(4, 2), g.expand(4, 2)), logs.exp().tril())


def test_half_precision_keeps_a_float32_state():
    given = {name: x.detach().bfloat16() for name, x in inputs("vector", 1.0).items() if name != "s"}
    state = {"s": torch.zeros(2, 3, 8, 8)}
    o, final = chunk(given["q"], given["k"], given["v"], causal=True, scale=0.3, state=state, g=given["g"])
    assert o.dtype == torch.bfloat16 and final["s"].dtype == torch.float32
