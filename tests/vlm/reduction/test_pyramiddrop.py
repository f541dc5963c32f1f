"""PyramidDrop: stages, and the ranking layer's own attention as transformers computes it."""

import pytest
import torch
from transformers import AutoModelForCausalLM, Qwen3Config

from gnomon.vlm.hf import CausalLM
from gnomon.vlm.layer_reduction import LayerReduction
from gnomon.vlm.layout import Kind, TokenLayout
from gnomon.vlm.reduction.base import ReduceContext
from gnomon.vlm.reduction.pyramiddrop import PyramidDrop

TINY = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 6, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "vocab_size": 40,
}  # fmt: skip


def test_the_papers_counts():
    paper = PyramidDrop(0.125)
    assert paper.layers == (8, 16, 24)
    assert [paper.budget(576, step) for step in range(3)] == [288, 144, 72]
    own = PyramidDrop(ratios=[0.9, 0.9, 0.5])
    assert own.ratio == 0.5 and [own.budget(10, step) for step in range(3)] == [9, 9, 5]


def test_rows_vote_together_and_the_first_of_equals_stays():
    rows = torch.tensor([[[0.1, 0.4, 0.0, 0.2], [0.3, 0.1, 0.0, 0.2]]])
    cell = torch.zeros(1, 4, 2, dtype=torch.long)
    ctx = ReduceContext(torch.zeros(1, 4, 3), ["a"], cell, cell[..., 0], rows=rows, full=8, step=0)
    # sums 0.4 0.5 0.0 0.4; a quarter of the first eight is left
    assert PyramidDrop(0.25, layers=[1]).plan(ctx).index[0, :, 0].tolist() == [0, 1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ratios": [0.5, 0.6, 0.1]}, "none larger"),
        ({"ratios": [0.5, 0.1]}, "3 stages"),
        ({"ratios": []}, "3 stages"),
        ({"ratios": [1.5, 0.5, 0.1]}, "in \\(0, 1\\]"),
        ({"layers": [4, 4]}, "rise from 0"),
        ({"layers": []}, "rise from 0"),
    ],
)
def test_stages_that_cannot_be_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        PyramidDrop(**options)


@torch.no_grad()
def test_each_stage_ranks_by_its_own_layer_and_numbers_anew():
    torch.manual_seed(0)
    lm = CausalLM(config={"model_type": "qwen3", **TINY}).eval()
    twin = AutoModelForCausalLM.from_config(Qwen3Config(**TINY), attn_implementation="eager").eval()
    twin.load_state_dict(lm.model.state_dict())
    layout = TokenLayout.text(1, 20)
    layout.kind[:, 3:15], layout.image[:, 3:15] = Kind.IMAGE, 0
    layout.cell[0, 3:15] = torch.cartesian_prod(torch.arange(3), torch.arange(4))
    embeds, state = torch.randn(1, 20, 32), lm.new_state()
    stages = LayerReduction([PyramidDrop(0.25, layers=[2, 4])], samples=["a"], probe=lm, depth=6)
    lm(embeds, layout, state, reduction=stages)
    weights = twin(inputs_embeds=embeds, output_attentions=True).attentions[2][0, :, -1, 3:15].mean(0)
    expected = (3 + weights.topk(6).indices).sort().values.tolist()
    first, second = stages.rewrites
    assert first.origin[0][first.layout.is_image[0]].tolist() == expected
    assert first.layout.position[0].tolist() == list(range(14))
    assert [cache.keys.shape[2] for cache in state.layers] == [20, 20, 14, 14, 11, 11]
    assert second.layout.position[0].tolist() == list(range(11))
