"""Sparing visual rows against the same layers computed in full, with what is to be spared set to nought by masks.

The full computation is written out here, as papers' code simulates it; every kind of layer that the runner takes apart.
"""

from __future__ import annotations

import sys

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from gnomon.vlm.attention import attending
from gnomon.vlm.compute.base import LayerCompute, VisualCompute
from gnomon.vlm.compute.naavit import NAAViT
from gnomon.vlm.compute.yopo import YOPO
from gnomon.vlm.hf import CausalLM
from gnomon.vlm.layout import Kind, TokenLayout
from gnomon.vlm.visual import VisualLayers, runnable

SHAPE = {
    "vocab_size": 40,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
}
KINDS = {
    "llama": {"attention_bias": True, "mlp_bias": True},
    "mistral": {"sliding_window": 7},
    "qwen2": {},
    "qwen3": {"head_dim": 16},
    "gemma": {"head_dim": 16, "hidden_activation": "gelu_pytorch_tanh"},
    "smollm3": {"no_rope_layers": [1, 0]},
    "qwen2_5_vl_text": {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]}},
}
BEFORE, SIDE, AFTER = 3, 3, 6


class Asked(VisualCompute):
    """One answer for all layers."""

    def __init__(self, work: LayerCompute) -> None:
        self.work = work

    def layer(self, index: int) -> LayerCompute:
        return self.work


def made(kind: str, **more) -> CausalLM:
    torch.manual_seed(0)
    return CausalLM(config={"model_type": kind, **SHAPE, **KINDS.get(kind, {}), **more}).eval()


def layout_of(lm: CausalLM) -> TokenLayout:
    """Two rows: one whose image comes after text, one of text alone; the second is padded on the left."""
    length = BEFORE + SIDE * SIDE + AFTER
    layout = TokenLayout.text(2, length)
    seen = slice(BEFORE, BEFORE + SIDE * SIDE)
    layout.kind[0, seen], layout.image[0, seen] = Kind.IMAGE, 0
    layout.cell[0, seen] = torch.cartesian_prod(torch.arange(SIDE), torch.arange(SIDE))
    layout.kind[1, :4] = Kind.PAD
    layout.position = layout.position.clone()
    layout.position[1] = (layout.position[1] - 4).clamp(min=0)
    if lm.axes == 3:
        layout.position = layout.position.expand(3, -1, -1).clone()
        layout.position[1:, 0, seen] = BEFORE + layout.cell[0, seen].T
    return layout


def simulated(lm: CausalLM, embeds: Tensor, layout: TokenLayout, work: LayerCompute) -> Tensor:
    """All rows, all columns, all neurons, and noughts."""
    visual, index = layout.is_cell, torch.arange(layout.shape[1])
    hidden, tables = embeds, lm.rotary(embeds, layout.position)
    position = layout.position if layout.position.dim() == 2 else layout.position[0]
    for layer, window, (cos, sin) in zip(lm.layers, lm.windows, tables):
        attention, normed = layer.self_attn, layer.input_layernorm(hidden)

        def heads(name: str, norm: str, attention=attention, normed=normed) -> Tensor:
            x = getattr(attention, name)(normed).unflatten(2, (-1, attention.head_dim))
            return (getattr(attention, norm)(x) if hasattr(attention, norm) else x).transpose(1, 2)

        query, key, value = heads("q_proj", "q_norm"), heads("k_proj", "k_norm"), heads("v_proj", "")
        if getattr(attention, "use_rope", True):
            query, key = sys.modules[type(attention).__module__].apply_rotary_pos_emb(query, key, cos, sin)
        key, value = (x.repeat_interleave(query.shape[1] // x.shape[1], 1) for x in (key, value))
        logits = query @ key.mT * attention.scaling
        sight = (index <= index[:, None]) & layout.visible[:, None]
        if window is not None:
            sight = sight & (position[:, :, None] - position[:, None] < window)
        sight = sight | (index == index[:, None])
        shares = logits.masked_fill(~sight[:, None], float("-inf")).softmax(-1)
        for head in work.blind:
            shares[:, head] = shares[:, head].masked_fill(visual[:, None], 0).masked_fill(visual[:, :, None], 0)
        out = attention.o_proj((shares @ value).transpose(1, 2).flatten(2))
        hidden = hidden + (out if work.attend else out.masked_fill(visual[..., None], 0))
        x, mlp = layer.post_attention_layernorm(hidden), layer.mlp
        neurons = mlp.act_fn(mlp.gate_proj(x)) * mlp.up_proj(x)
        beyond = torch.arange(neurons.shape[2]) >= round(work.ffn * neurons.shape[2])
        out = mlp.down_proj(neurons.masked_fill(visual[..., None] & beyond, 0))
        hidden = hidden + (out.masked_fill(visual[..., None], 0) if work.ffn == 0 else out)
    return lm.normed(hidden)


@pytest.mark.parametrize(
    "work",
    [
        LayerCompute(attend=False),
        LayerCompute(attend=False, ffn=0),
        LayerCompute(attend=False, ffn=0.25),
        LayerCompute(ffn=0.5),
        LayerCompute(blind=(2,)),
        LayerCompute(blind=(3, 0), ffn=0.5),
        LayerCompute(blind=(0, 1, 2, 3)),
    ],
    ids=str,
)
@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_sparing_equals_the_full_computation_with_noughts(kind, work):
    lm = made(kind)
    layout, embeds = layout_of(lm), torch.randn(2, BEFORE + SIDE * SIDE + AFTER, 32)
    policy = Asked(work)
    runnable(policy, lm.layers)
    found = lm(embeds, layout, visual=VisualLayers(policy, attending))
    there = layout.visible
    torch.testing.assert_close(found[there], simulated(lm, embeds, layout, work)[there], atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", ["gemma2", "gemma3_text", "olmo2", "phi3"])
def test_other_layers_are_refused_where_their_parts_are_needed(kind):
    torch.manual_seed(0)
    lm = CausalLM(config={"model_type": kind, **SHAPE}, attention="eager" if kind == "gemma2" else "sdpa")
    with pytest.raises(ValueError, match=r"NAAViT with .*, whose parts are not Llama's"):
        runnable(NAAViT(), lm.layers)
    # a mask alone is for all
    runnable(YOPO(5), lm.layers)


def test_heads_of_capped_attention_are_refused():
    lm = CausalLM(config={"model_type": "gemma2", **SHAPE, "head_dim": 8}, attention="eager")
    with pytest.raises(ValueError, match="caps attention"):
        runnable(Asked(LayerCompute(blind=(0,))), lm.layers)


@torch.no_grad()
def test_flops_fall_by_what_is_spared():
    """Without a fused kernel, whose products the counter sees; MACs of one layer, as many key heads as query heads."""
    lm = made("llama", num_key_value_heads=4, num_hidden_layers=1, attention_bias=False, mlp_bias=False)
    layout = layout_of(lm)
    layout = TokenLayout(*(x[:1] for x in (layout.kind, layout.image, layout.cell, layout.position)))
    n, t, d, m, wide = SIDE * SIDE, BEFORE + AFTER, 32, 48, 8

    def counted(work: LayerCompute) -> int:
        spared = VisualLayers(Asked(work), attending)
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            lm(torch.randn(1, n + t, d), layout, visual=spared)
        return counter.get_total_flops() // 2

    whole = counted(LayerCompute())
    assert whole == (n + t) * (4 * d * d + 3 * d * m) + 2 * (n + t) ** 2 * d
    assert whole - counted(LayerCompute(ffn=0.5)) == n * 3 * d * m // 2
    assert whole - counted(LayerCompute(blind=(1, 2))) == 2 * 2 * n * (n + t) * wide
    assert whole - counted(LayerCompute(attend=False)) == 2 * n * d * d + 2 * n * (n + t) * d
    assert whole - counted(LayerCompute(attend=False, ffn=0)) == n * (2 * d * d + 3 * d * m) + 2 * n * (n + t) * d
