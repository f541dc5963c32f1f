"""What the bench says of a tiny model: lengths, bytes and operations are known; times only have to be there."""

from __future__ import annotations

import pytest
import torch

from gnomon.eval.bench.decode import UNREDUCED, measure
from gnomon.eval.bench.synthetic import prompt
from gnomon.eval.flops import Decoder
from gnomon.vlm.connectors.pixel_shuffle import PixelShuffle
from gnomon.vlm.layout import Kind
from gnomon.vlm.mixers.gla import GLA
from gnomon.vlm.reduction.fastv import FastV
from gnomon.vlm.reduction.peap_fast import PEAPFast
from gnomon.vlm.reduction.pyramiddrop import PyramidDrop
from gnomon.vlm.reduction.random import Random

LAYERS = {"num_hidden_layers": 4, "hidden_size": 64, "intermediate_size": 96}


def test_side_by_side(tiny, flop_counter):
    model = tiny(lm=LAYERS)
    settings = {
        "random": [Random(0.25)],
        "fastv": [FastV(0.5, layer=1)],
        "both": [Random(0.5), PyramidDrop(0.25, layers=[1, 3])],
    }
    found = measure(model, settings, visual=40, text=10, new=3, rows=2, repeats=2)
    assert [r.setting for r in found] == [UNREDUCED, "random", "fastv", "both"]
    assert [r.lengths for r in found] == [[50] * 4, [20] * 4, [50, 30, 30, 30], [30, 20, 20, 15]]
    assert all(r.cached == r.lengths for r in found)
    assert found[2].kept == pytest.approx(0.625)
    shape = Decoder.of(model.lm)
    for result, reducers in zip(found, [[], *settings.values()]):
        assert result.cache_bytes == 2 * shape.cache_bytes(result.lengths, 4)
        assert len(result.prefill) == len(result.decode) == 2 and min(result.prefill + result.decode) > 0
        assert all(first > prefill for first, prefill in zip(result.first_token, result.prefill))
        assert bool(result.choosing) == bool(reducers)
        # choosing and connecting included, the sum is what torch counts in the whole prefill
        batch, seen = prompt(model, rows=2, visual=40, text=10, needs=frozenset())
        model.reducers = reducers
        with flop_counter() as counter, torch.no_grad():
            model.read(batch, model.lm.new_state(), seen)
        assert result.flops == pytest.approx(counter.get_total_flops(), rel=0.01)
        assert result.besides > 0 and result.causal < result.flops
    assert found[2].besides > found[0].besides, "scores are not counted"


def test_the_models_own_reducers_are_back_afterwards(tiny):
    model = tiny(lm=LAYERS, reducers=[FastV(0.5, layer=1)])
    own = model.reducers
    found = measure(model, {}, visual=16, text=4, new=1, repeats=1)
    assert model.reducers is own and found[0].lengths == [20] * 4


def test_a_mixer_keeps_a_memory_and_no_keys(tiny):
    model = tiny(lm=LAYERS, mixers=[GLA([1, 3], rank=4)])
    (found,) = measure(model, {}, visual=16, text=4, new=2, rows=2, repeats=1)
    assert found.lengths == [20] * 4 and found.cached == [20, 0, 20, 0]
    assert found.cache_bytes == 2 * Decoder.of(model.lm).cache_bytes(found.lengths, 4)
    assert len(found.decode) == 1


def test_inside_the_encoder_is_another_matter(tiny):
    with pytest.raises(ValueError, match="acts inside the encoder"):
        measure(tiny(), {"peap_fast:0.5": [PEAPFast(0.5)]}, visual=16)


@pytest.mark.parametrize(
    ("visual", "images", "grid"), [(576, 1, (24, 24)), (1152, 2, (24, 24)), (35, 1, (5, 7)), (13, 1, (1, 13))]
)
def test_prompts_have_the_tokens_that_were_asked_for(tiny, visual, images, grid):
    model = tiny(connector=PixelShuffle(merge=2))
    needs = frozenset({"saliency", "keys", "pixels"})
    batch, (seen,) = prompt(model, rows=2, visual=visual, text=6, needs=needs)
    assert (batch.layout.kind == Kind.IMAGE).sum(1).tolist() == [visual] * 2
    assert batch.layout.shape[1] == visual + 6 and len(batch.pixels) == 2 * images
    assert seen.features.grid == [(2 * grid[0], 2 * grid[1])] * (2 * images)
    assert seen.features.saliency.shape == seen.features.tokens.shape[:2] and seen.pixels.shape[1] == 3
    assert seen.features.xyz is None
    with torch.no_grad():
        embeds, layout, _ = model.embed(batch, [seen])
    assert embeds.shape[:2] == layout.shape
