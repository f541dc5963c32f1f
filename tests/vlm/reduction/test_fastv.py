"""FastV: the last row's attention, against transformers' own attention weights."""

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from gnomon.vlm.hf import CausalLM
from gnomon.vlm.layer_reduction import LayerReduction
from gnomon.vlm.layout import Kind, TokenLayout
from gnomon.vlm.reduction.base import ReduceContext
from gnomon.vlm.reduction.fastv import FastV

TINY = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4, "num_attention_heads": 4, "vocab_size": 40}


def test_the_largest_scores_stay_in_raster_order():
    scores = torch.tensor([[[0.1, 0.4, 0.1, 0.3, 0.1]]])
    cell = torch.zeros(1, 5, 2, dtype=torch.long)
    ctx = ReduceContext(torch.zeros(1, 5, 3), ["a"], cell, cell[..., 0], rows=scores)
    # of the three equal ones the first is kept
    assert FastV(0.6).plan(ctx).index[0, :, 0].tolist() == [0, 1, 3]


def test_layer_zero_has_nothing_before_it():
    with pytest.raises(ValueError, match="layer 0"):
        FastV(0.5, layer=0)


def test_rows_that_are_not_known_are_refused():
    with pytest.raises(ValueError, match="last or all"):
        FastV(0.5, rows="first")


@pytest.mark.parametrize("rows", ["last", "all"])
@pytest.mark.parametrize("key_heads", [1, 2, 4])
@torch.no_grad()
def test_scores_are_transformers_own_attention(key_heads, rows):
    torch.manual_seed(0)
    lm = CausalLM(config={"model_type": "llama", **TINY, "num_key_value_heads": key_heads}).eval()
    twin = AutoModelForCausalLM.from_config(
        LlamaConfig(**TINY, num_key_value_heads=key_heads), attn_implementation="eager"
    ).eval()
    twin.load_state_dict(lm.model.state_dict())
    layout = TokenLayout.text(1, 20)
    layout.kind[:, 3:15], layout.image[:, 3:15] = Kind.IMAGE, 0
    layout.cell[0, 3:15] = torch.cartesian_prod(torch.arange(3), torch.arange(4))
    embeds = torch.randn(1, 20, 32)
    kept = LayerReduction([FastV(0.25, layer=3, rows=rows)], samples=["a"], probe=lm, depth=4)
    lm(embeds, layout, reduction=kept)
    matrix = twin(inputs_embeds=embeds, output_attentions=True).attentions[2][0, :, :, 3:15].mean(0)
    weights = matrix[-1] if rows == "last" else matrix.mean(0)
    expected = (3 + weights.topk(3).indices).sort().values.tolist()
    image = kept.rewrites[0].layout.is_image[0]
    assert kept.rewrites[0].origin[0][image].tolist() == expected
