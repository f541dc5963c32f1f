"""Lightning: TransNormerLLM's layer as the matrix of its weights, and MiniMax's schedule of rates."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from gnomon.vlm.layout import TokenLayout
from gnomon.vlm.mixers.lightning import Lightning


@torch.no_grad()
def test_the_rule_as_a_matrix(seated, x):
    mixer = seated(Lightning(), layer=1, depth=4)
    found, _ = mixer(x, TokenLayout.text(2, 9))
    q, k = F.silu(mixer.q_proj(x)).view(2, 9, 4, 6), F.silu(mixer.k_proj(x)).view(2, 9, 2, 6)
    v = mixer.v_proj(x).view(2, 9, 2, 6)
    rates = 8 * torch.arange(4) / 4 * (1 - 1 / 4)
    away = torch.arange(9)[:, None] - torch.arange(9)
    weights = torch.exp(-rates[:, None, None] * away.clamp(min=0)) * (away >= 0)
    k, v = k.repeat_interleave(2, 2), v.repeat_interleave(2, 2)
    o = torch.einsum("bqhd,bkhd,hqk,bkhv->bqhv", q, k, weights, v).flatten(2)
    o = o * 24**0.5 / o.norm(dim=-1, keepdim=True)
    torch.testing.assert_close(found, mixer.o_proj(mixer.gate_proj(x) * o), atol=1e-4, rtol=1e-3)


def test_rates_of_minimax(seated):
    mixer = seated(Lightning(schedule="minimax"), layer=2, depth=4)
    expected = [2.0 ** (-2 * (h + 1)) * (1 - 2 / (3 + 1e-5) + 1e-5) for h in range(4)]
    torch.testing.assert_close(torch.tensor(mixer.rates), torch.tensor(expected))
