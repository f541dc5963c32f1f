"""Self-attention on both side by side: its size, its rule, and padding that nobody looks at."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from gnomon.vlm.fusion.concat_attention import ConcatAttention
from gnomon.vlm.plan import ReductionPlan


def test_size(counted):
    assert counted(ConcatAttention(), "attention", vision=1152, geometry=768) == 16 * 1152**2 + 8 * 1152


def test_rule(parts, ready):
    fusion, given = ready(ConcatAttention(heads=4)), parts()
    c = torch.cat([given["vision"].tokens, fusion.geometry(given["geometry"].tokens)], -1)
    normed = F.layer_norm(c, (16,))
    expected = fusion.out(F.layer_norm(c + fusion.attention(normed, normed, normed), (16,)))
    torch.testing.assert_close(fusion(given).tokens, expected, atol=1e-5, rtol=1e-4)


def test_tokens_that_left_are_not_looked_at(parts, ready):
    fusion, given = ready(ConcatAttention(heads=4)), parts()
    mask = torch.tensor([[1, 1, 0, 0, 1, 0], [1, 0, 1, 1, 1, 1]]).bool()
    fewer = {**given, "vision": given["vision"].reduced(ReductionPlan.keep_where(mask))}
    alone = {name: part.at(torch.tensor([0])) for name, part in given.items()}
    alone["vision"] = alone["vision"].reduced(ReductionPlan.keep_where(mask[:1]))
    torch.testing.assert_close(fusion(fewer).tokens[0, :3], fusion(alone).tokens[0], atol=1e-5, rtol=1e-4)
