"""LoLCATs: the shared denominator, pair by pair, and its limits."""

import pytest
import torch
from torch import Tensor

from gnomon.kernels.linear.lolcats import lolcats
from gnomon.kernels.mask import CAUSAL
from gnomon.kernels.masks.tokens import Tokens

IMPLS = ["reference", "chunk"]


def draw(*size: int, seed: int = 0) -> Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def pair_by_pair(q: Tensor, k: Tensor, v: Tensor, maps: tuple[Tensor, Tensor], factor: float, window: int) -> Tensor:
    """The rule for one head, (T,D) each, in loops."""
    phi_q, phi_k = (torch.cat([x.softmax(-1), (-x).softmax(-1)], -1) for x in maps)
    mu, rows = torch.tensor(factor).double().sigmoid(), []
    for i in range(len(q)):
        near = range(max(i - window + 1, 0), i + 1)
        scores = torch.stack([q[i] @ k[j] for j in near]) / q.shape[1] ** 0.5
        weights = mu * (scores - scores.max()).exp()
        above, below = weights @ v[near.start : i + 1], weights.sum()
        for j in range(near.start):
            above, below = above + (phi_q[i] @ phi_k[j]) * v[j], below + phi_q[i] @ phi_k[j]
        rows.append(above / below)
    return torch.stack(rows)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("window", [1, 5, 64])
def test_rule(impl, window):
    """Outputs and gradients; the largest score of the window is part of the derivative."""
    q, k, v, q_map, k_map = (draw(20, 4, seed=n).requires_grad_() for n in range(5))
    expected = pair_by_pair(q, k, v, (q_map, k_map), -2.197, window)
    one = [x[None, :, None] for x in (q, k, v, q_map, k_map)]
    factor = torch.tensor([-2.197], dtype=torch.float64)
    o, _ = lolcats(*one[:3], q_map=one[3], k_map=one[4], factor=factor, window=window, mask=CAUSAL, impl=impl, block=7)
    torch.testing.assert_close(o[0, :, 0], expected)
    given, weights = (q, k, v, q_map, k_map), draw(20, 4, seed=9)
    mine = torch.autograd.grad((o[0, :, 0] * weights).sum(), given, allow_unused=True)
    theirs = torch.autograd.grad((expected * weights).sum(), given, allow_unused=True)
    for a, b in zip(mine, theirs):
        torch.testing.assert_close(a, torch.zeros_like(a) if b is None else b)


@pytest.mark.parametrize("impl", IMPLS)
def test_window_over_everything_is_softmax(impl):
    q, k, v = (draw(2, 30, 3, 4, seed=n) for n in range(3))
    o, _ = lolcats(q, k, v, factor=draw(3), window=30, mask=CAUSAL, impl=impl)
    heads_first = (x.transpose(1, 2) for x in (q, k, v))
    softmax = torch.nn.functional.scaled_dot_product_attention(*heads_first, is_causal=True)
    torch.testing.assert_close(o, softmax.transpose(1, 2))


@pytest.mark.parametrize("impl", IMPLS)
def test_no_window_is_hedgehog(impl):
    """All weights are products of features, the token's own too."""
    q, k, v = (draw(1, 30, 1, 4, seed=n) for n in range(3))
    o, _ = lolcats(q, k, v, factor=draw(1), window=0, mask=CAUSAL, impl=impl)
    phi_q, phi_k = (torch.cat([x.softmax(-1), (-x).softmax(-1)], -1)[0, :, 0] for x in (q, k))
    weights = (phi_q @ phi_k.T).tril()
    torch.testing.assert_close(o[0, :, 0], weights / weights.sum(-1, keepdim=True) @ v[0, :, 0])


def test_state_does_not_grow():
    """Token by token: keys of one window less one, and a sum of all that is older."""
    q, k, v = (draw(1, 40, 2, 4, seed=n) for n in range(3))
    factor, state, parts = draw(2), None, []
    for t in range(40):
        o, state = lolcats(*(x[:, t : t + 1] for x in (q, k, v)), factor=factor, window=8, mask=CAUSAL, state=state)
        parts.append(o)
        assert state["k"].shape[1] == state["v"].shape[1] == min(t + 1, 7)
    whole, _ = lolcats(q, k, v, factor=factor, window=8, mask=CAUSAL)
    torch.testing.assert_close(torch.cat(parts, 1), whole)


@pytest.mark.parametrize("impl", IMPLS)
def test_cross(impl):
    """A window over everything is softmax: of the last 3 of 6, and packed, the last 1 of 2 and 2 of 4."""
    q, k, v = draw(1, 3, 2, 4), draw(1, 6, 2, 4, seed=1), draw(1, 6, 2, 4, seed=2)
    keys = Tokens.line(6)
    packed = Tokens.packed(torch.tensor([0, 2, 6]))
    last = packed.take(torch.tensor([1, 4, 5]))
    for mask in (CAUSAL.on(keys.take(slice(3, 6)), keys), CAUSAL.on(last, packed)):
        o, _ = lolcats(q, k, v, factor=draw(2), mask=mask, impl=impl)
        heads_first = (x.transpose(1, 2) for x in (q, k, v))
        softmax = torch.nn.functional.scaled_dot_product_attention(*heads_first, attn_mask=mask.dense())
        torch.testing.assert_close(o, softmax.transpose(1, 2))


def test_queries_that_are_not_the_last_keys():
    q, k, factor = draw(1, 3, 2, 4), draw(1, 6, 2, 4, seed=1), draw(2)
    message = r"^lolcats: queries at 0 to 2 are not the last of the keys at 0 to 5; take their tokens"
    with pytest.raises(ValueError, match=message):
        lolcats(q, k, k, factor=factor, mask=CAUSAL.on(Tokens.line(3), Tokens.line(6)))
    for cuts in ([0, 1, 3], [0, 2, 3]):
        with pytest.raises(ValueError, match=r"^lolcats: queries at 0 to 1 are not the last of the keys at 0 to 4"):
            lolcats(q, k, k, factor=factor, mask=CAUSAL, cu_seqlens=(torch.tensor(cuts), torch.tensor([0, 1, 6])))
    shuffled = Tokens.line(6).take(torch.tensor([2, 0, 1, 3, 4, 5]))
    with pytest.raises(ValueError, match=r"^lolcats: positions do not rise along the tokens"):
        lolcats(q, k, k, factor=factor, mask=CAUSAL.on(shuffled.take(slice(3, 6)), shuffled))


def test_wrong_calls():
    x, factor = draw(1, 6, 2, 4), draw(2)
    with pytest.raises(ValueError, match=r"^lolcats: window -1 is negative"):
        lolcats(x, x, x, factor=factor, window=-1, mask=CAUSAL)
    with pytest.raises(
        ValueError, match=r"^lolcats: q_map has shape \(1, 6, 2, 3\) and k_map \(1, 6, 2, 4\); give both"
    ):
        lolcats(x, x, x, factor=factor, q_map=draw(1, 6, 2, 3), mask=CAUSAL)
    with pytest.raises(ValueError, match=r"^lolcats: factor has shape \(3,\); give \(2,\)"):
        lolcats(x, x, x, factor=draw(3), mask=CAUSAL)
    with pytest.raises(ValueError, match=r"^lolcats: state holds"):
        lolcats(x, x, x, factor=factor, mask=CAUSAL, state={"s": x})
