"""Concatenation: its size, and the rule by hand."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from gnomon.vlm.fusion.concat import Concat


def test_size_is_the_published_one(counted):
    assert counted(Concat(), without="merger", vision=3584, geometry=2048) == 25_708_032


def test_rule_by_hand(parts, ready):
    fusion, given = ready(Concat()), parts()
    v, g = given["vision"].tokens, fusion.merger(given["geometry"].tokens)
    both = torch.cat([F.layer_norm(v, (8,)), F.layer_norm(g, (8,))], -1)
    torch.testing.assert_close(fusion(given).tokens, both @ fusion.join.weight.T + fusion.join.bias)
