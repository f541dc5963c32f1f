"""SAISA: keys and values of each layer from its own projector, nothing else of visual tokens, and the FLOPs."""

from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from gnomon.vlm.attention import attending
from gnomon.vlm.compute.naavit import NAAViT
from gnomon.vlm.compute.saisa import SAISA
from gnomon.vlm.connectors.pixel_shuffle import PixelShuffle
from gnomon.vlm.layout import Batch, Kind, TokenLayout
from gnomon.vlm.model import VLM
from gnomon.vlm.reduction.random import Random
from gnomon.vlm.visual import VisualLayers

BEFORE, SIDE, AFTER = 2, 4, 5


def batch_of(side: int = SIDE) -> Batch:
    layout, count = TokenLayout.text(1, BEFORE + side * side + AFTER), side * side
    seen = slice(BEFORE, BEFORE + count)
    layout.kind[:, seen], layout.image[:, seen] = Kind.IMAGE, 0
    layout.cell[:, seen] = torch.cartesian_prod(torch.arange(side), torch.arange(side))
    ids = torch.arange(layout.shape[1])[None] % 30 + 3
    pixels = [torch.randint(0, 256, (3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))]
    return Batch(ids, ids, layout, pixels, samples=["a"])


def caches(model: VLM, batch: Batch):
    state = model.lm.new_state()
    return model.read(batch, state), state


@torch.no_grad()
def test_layer_0_is_that_of_llava(tiny):
    plain, model, batch = tiny(), tiny(compute=SAISA()), batch_of()
    (_, expected), (_, found) = caches(plain, batch), caches(model, batch)
    for name in ("keys", "values"):
        ours, theirs = getattr(found.layers[0], name), getattr(expected.layers[0], name)
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-6)
        # further on they are not
        visual = slice(BEFORE, BEFORE + SIDE * SIDE)
        ours, theirs = (getattr(s.layers[1], name)[:, :, visual] for s in (found, expected))
        assert float((ours - theirs).abs().max()) > 1e-3


@torch.no_grad()
def test_each_layer_reads_its_own_projection(tiny):
    model, batch = tiny(lm={"num_hidden_layers": 3}, compute=SAISA()), batch_of()
    read, state = caches(model, batch)
    features = model.see(batch.pixels)[0].features.tokens
    embeds = model.embed(batch)[0][:, BEFORE : BEFORE + SIDE * SIDE]
    fed = [embeds, *(projector(features) for projector in model.compute.projectors)]
    for layer, cache, visual in zip(model.lm.layers, state.layers, fed):
        values = layer.self_attn.v_proj(layer.input_layernorm(visual)).view(1, SIDE * SIDE, 2, -1).transpose(1, 2)
        torch.testing.assert_close(cache.values[:, :, BEFORE : BEFORE + SIDE * SIDE], values, atol=1e-5, rtol=1e-5)
    # their hidden states were never touched
    torch.testing.assert_close(read.hidden[:, BEFORE : BEFORE + SIDE * SIDE], model.lm.normed(embeds))


def test_one_projector_for_all_is_counted_once(tiny):
    counts = [
        sum(p.numel() for p in tiny(lm={"num_hidden_layers": 4}, compute=SAISA(shared=shared)).compute.parameters())
        for shared in (False, True)
    ]
    one = 24 * 32 + 32 + 32 * 32 + 32
    assert counts == [3 * one, one]


@torch.no_grad()
def test_shared_projector_with_the_connectors_weights(tiny):
    """Every layer then reads what LLaVA's first layer reads."""
    model, batch = tiny(lm={"num_hidden_layers": 3}, compute=SAISA(shared=True)), batch_of()
    model.compute.projectors[0].load_state_dict(model.connector.layers.state_dict())
    _, state = caches(model, batch)
    embeds = model.embed(batch)[0][:, BEFORE : BEFORE + SIDE * SIDE]
    for layer, cache in zip(model.lm.layers, state.layers):
        values = layer.self_attn.v_proj(layer.input_layernorm(embeds)).view(1, SIDE * SIDE, 2, -1).transpose(1, 2)
        torch.testing.assert_close(cache.values[:, :, BEFORE : BEFORE + SIDE * SIDE], values, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_flops_are_those_of_the_paper(tiny):
    """Attention without a fused kernel, whose products the counter sees; as many key heads as query heads."""
    depth, d, m, dv, n, t = 3, 32, 48, 24, SIDE * SIDE, BEFORE + AFTER
    shape, batch = {"num_hidden_layers": depth, "num_key_value_heads": 4}, batch_of()

    def counted(compute) -> int:
        model = tiny(lm=shape, compute=compute)
        model.lm.model.config._attn_implementation = model.lm.attention = "eager"
        seen = model.see(batch.pixels)
        with FlopCounterMode(display=False) as counter:
            model.read(batch, seen=seen)
        return counter.get_total_flops() // 2

    def layer(queries: int, fed: int) -> int:
        """MACs: queries and outputs, keys and values, attention, feed-forward part."""
        return 2 * queries * d * d + 2 * (n + t) * d * d + 2 * queries * (n + t) * d + 3 * fed * d * m

    project = n * (dv * d + d * d)
    assert counted(None) == depth * layer(n + t, n + t) + project
    assert counted(NAAViT()) == depth * layer(t, n + t) + project
    assert counted(SAISA()) == depth * (layer(t, t) + project)


def test_the_formula_at_7b():
    """What the count above equals, at the shape of LLaVA-1.5-7B: about a third is left."""
    d, m, dv, n, t, depth = 4096, 11008, 1024, 576, 64, 32
    whole = depth * (4 * (n + t) * d * d + 2 * (n + t) ** 2 * d + 3 * (n + t) * d * m) + n * (dv * d + d * d)
    spared = 2 * t * d * d + 2 * (n + t) * d * d + 2 * t * (n + t) * d + 3 * t * d * m + n * (dv * d + d * d)
    assert depth * spared / whole == pytest.approx(0.336, abs=0.002)


@torch.no_grad()
def test_merged_cells_are_read_side_by_side(tiny):
    model, batch = tiny(connector=PixelShuffle(2), compute=SAISA()), batch_of(side=2)
    features = model.see(batch.pixels)[0].features.tokens.view(4, 4, 24)
    first = torch.cat([features[0, 0], features[0, 1], features[1, 0], features[1, 1]])
    _, state = caches(model, batch)
    layer = model.lm.layers[1]
    values = layer.self_attn.v_proj(layer.input_layernorm(model.compute.projectors[0](first)))
    torch.testing.assert_close(state.layers[1].values[0, :, BEFORE].flatten(), values, atol=1e-5, rtol=1e-5)


def test_reducers_are_refused(tiny):
    with pytest.raises(ValueError, match="Random acts on features that every layer reads"):
        tiny(compute=SAISA(), reducers=[Random(0.5)])
    tiny(compute=SAISA(), reducers=[Random(1.0)])


@torch.no_grad()
def test_reducers_before_the_language_model_go_with_naavit(tiny):
    model, batch = tiny(compute=NAAViT(), reducers=[Random(0.5)]), batch_of()
    read = model.read(batch)
    assert int(read.after.is_image.sum()) == 8
    assert torch.equal(read.hidden, model.read(replace(batch, samples=["a"])).hidden)


@pytest.mark.parametrize("cls", [SAISA, NAAViT])
@torch.no_grad()
def test_text_does_not_see_the_order_of_visual_tokens(tiny, cls):
    """But for their position ids, which go along here."""
    model, batch = tiny(compute=cls()), batch_of()
    order, seen = torch.randperm(SIDE * SIDE, generator=torch.Generator().manual_seed(0)), BEFORE + SIDE * SIDE
    every = torch.cat([torch.arange(BEFORE), BEFORE + order, torch.arange(seen, seen + AFTER)])
    embeds, layout, _ = model.embed(batch)
    source = torch.randn(1, len(every), model.encoder.width)
    found = []
    for at in (torch.arange(len(every)), every):
        moved = replace(layout, cell=layout.cell[:, at], position=layout.position[:, at])
        found.append(model.lm(embeds[:, at], moved, visual=VisualLayers(model.compute, attending, source[:, at])))
    torch.testing.assert_close(found[0][:, seen:], found[1][:, seen:], atol=1e-5, rtol=1e-5)
    assert not torch.equal(model.lm(embeds, layout)[:, seen:], found[0][:, seen:])
