"""VLM-3R's concatenation: twelve squares of weights, no residual, grids of any kind."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from gnomon.vlm.fusion.concat_mlp import ConcatMLP


def test_size(counted):
    assert counted(ConcatMLP(), "join", vision=1152, geometry=768) == 12 * 1152**2 + 5 * 1152


def test_nothing_passes_by(parts, ready):
    fusion, given = ready(ConcatMLP()), parts()
    v, beside = given["vision"].tokens, fusion.geometry(given["geometry"].tokens)
    first, _, second = fusion.join
    torch.testing.assert_close(fusion(given).tokens, second(F.gelu(first(torch.cat([v, beside], -1)))))
    with torch.no_grad():
        second.weight.zero_()
    assert bool((fusion(given).tokens == second.bias).all())


@pytest.mark.parametrize("align", ["interp", "pool"])
def test_a_constant_picture_is_the_same_on_any_grid(parts, ready, align):
    fusion, given, fine = ready(ConcatMLP(align=align)), parts(), parts(merge=3)
    given["geometry"].tokens[:], fine["geometry"].tokens[:] = 0.7, 0.7
    torch.testing.assert_close(fusion(given).tokens, fusion(fine).tokens)
