"""The gate: its size, and what it yields wide open and shut."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from gnomon.vlm.fusion.gated import Gated


def test_size_is_the_published_one(counted):
    assert counted(Gated(), without="merger", vision=3584, geometry=2048) == 25_708_032


def test_the_bias_decides(parts, ready):
    fusion, given = ready(Gated()), parts()
    v, g = given["vision"].tokens, fusion.merger(given["geometry"].tokens)
    with torch.no_grad():
        fusion.gate.weigh.weight.zero_()
        for bias, expected, opened in ((20.0, v, 0.0), (-20.0, g, 1.0), (0.0, None, 0.5)):
            fusion.gate.weigh.bias.fill_(bias)
            expected = (F.layer_norm(v, (8,)) + F.layer_norm(g, (8,))) / 2 if expected is None else expected
            expected = expected if bias == 0 else F.layer_norm(expected, (8,))
            torch.testing.assert_close(fusion(given).tokens, expected, atol=1e-6, rtol=1e-5)
            torch.testing.assert_close(fusion.openness(given), torch.full((2, 6), opened), atol=1e-6, rtol=0)


def test_the_gate_is_one_per_token_and_channel(parts, ready):
    fusion, given = ready(Gated()), parts()
    v, g = (F.layer_norm(x, (8,)) for x in (given["vision"].tokens, fusion.merger(given["geometry"].tokens)))
    z = ((fusion(given).tokens - g) / (v - g)).detach()
    expected = (torch.cat([v, g], -1) @ fusion.gate.weigh.weight.T + fusion.gate.weigh.bias).sigmoid()
    torch.testing.assert_close(z, expected, atol=1e-3, rtol=1e-3)
