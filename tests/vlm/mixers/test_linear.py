"""LinearAttention: each operator's layer from all pairs of tokens; memories, padding and packed samples with each."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from gnomon.vlm.layout import Kind, TokenLayout
from gnomon.vlm.mixers.linear import FORMS, LinearAttention

operators = pytest.mark.parametrize("operator", list(FORMS))


def made(seated, operator: str) -> LinearAttention:
    # a denominator that lies between those of these sizes
    return seated(LinearAttention(operator=operator, least=2.0))


def signed(x: Tensor) -> Tensor:
    return torch.cat([x.relu(), (-x).relu()], -1)


def answer(mixer: LinearAttention, q: Tensor, k: Tensor, v: Tensor, head: int) -> Tensor:
    """Of the last query q (D,) over k and v (n,D), as its paper has it."""
    n, scale = len(k), 6**-0.5
    if mixer.operator == "plain":
        return (F.elu(k) + 1) @ (F.elu(q) + 1) @ v
    if mixer.operator == "lightnet":
        return F.silu(q) @ (k.softmax(0).T @ v)
    if mixer.operator == "inline":
        scores = scale / n * k @ q
        return (scores - scores.mean() + 1 / n) @ v
    if mixer.operator == "mala":
        scores = scale / n * (F.elu(k) + 1) @ (F.elu(q) + 1)
        return ((1 + 1 / (scores.sum() + 1e-6)) * scores - scores.sum() / n) @ v
    if mixer.operator == "nalaformer":
        length = q.norm()
        scores = signed(k) ** 3 @ signed(q / length) ** (3 * (0.5 + length.tanh()))
        return scores @ v / n / (scores.mean() + 1e-6)
    scores = k.relu() @ q.relu()
    return mixer.temperature[head] * scores @ v / max(float(scores.sum()), 2.0)


@operators
@torch.no_grad()
def test_the_rule_query_by_query(seated, x, operator):
    mixer = made(seated, operator)
    found, _ = mixer(x, TokenLayout.text(2, 9))
    q, k, v = (getattr(mixer, f"{n}_proj")(x).view(2, 9, -1, 6) for n in "qkv")
    for row, t in torch.cartesian_prod(torch.arange(2), torch.arange(9)).tolist():
        past = slice(0, t + 1)
        o = torch.cat([answer(mixer, q[row, t, h], k[row, past, h // 2], v[row, past, h // 2], h) for h in range(4)])
        if operator in ("plain", "lightnet"):
            o = o / o.square().mean().sqrt()
        torch.testing.assert_close(found[row, t], mixer.o_proj(o), atol=1e-4, rtol=1e-3)


@operators
@torch.no_grad()
def test_rows_bring_tokens_when_they_like(seated, x, operator):
    """One row has none at first, padding stands anywhere, and the first row begins with another sample."""
    mixer, memory = made(seated, operator), {}
    start = TokenLayout.text(2, 7)
    start.document = torch.tensor([[0, 0, 0, 1, 1, 1, 1]] * 2)
    start.kind[0, 4], start.kind[1] = Kind.PAD, Kind.PAD
    found, memory = mixer(x[:, :7], start, memory)
    rows = [x[:1, [3, 5, 6]], x[1:, :0]]
    torch.testing.assert_close(found[:1, :3], mixer(x[:1, :3], TokenLayout.text(1, 3))[0], atol=1e-5, rtol=1e-4)
    for t, absent in ((7, [1]), (8, []), (0, [0]), (1, [])):
        layout = TokenLayout.text(2, 1)
        layout.kind[absent] = Kind.PAD
        found, memory = mixer(x[:, t : t + 1], layout, memory)
        for i in {0, 1} - set(absent):
            rows[i] = torch.cat([rows[i], x[i : i + 1, t : t + 1]], 1)
            whole, _ = mixer(rows[i], TokenLayout.text(1, rows[i].shape[1]))
            torch.testing.assert_close(found[i, 0], whole[0, -1], atol=1e-4, rtol=1e-3)
    assert [row.shape[1] for row in rows] == [6, 3]


@operators
def test_all_parameters_learn(seated, x, operator):
    mixer = made(seated, operator)
    mixer(x, TokenLayout.text(2, 9))[0].square().sum().backward()
    # a constant in all keys changes nothing in these
    free = {"k_proj.bias"} if operator in ("lightnet", "inline") else set()
    assert all(float(p.grad.abs().sum()) > 0 for name, p in mixer.named_parameters() if name not in free)
    assert hasattr(mixer, "temperature") == (operator == "l2vit")


@pytest.mark.parametrize("options, match", [({"operator": "rala"}, "'rala'"), ({"least": 0}, "least 0")])
def test_wrong_options_are_refused(options, match):
    with pytest.raises(ValueError, match=match):
        LinearAttention(**options)
