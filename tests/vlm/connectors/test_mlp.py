"""MLP: LLaVA's projector, against transformers' own."""

import pytest
import torch
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig
from transformers.models.llava.modeling_llava import LlavaMultiModalProjector

from gnomon.vlm.connectors.mlp import MLP
from gnomon.vlm.layout import Features


def test_equals_the_projector_of_llava():
    heads = {"num_attention_heads": 2}
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(hidden_size=6, **heads), text_config=LlamaConfig(hidden_size=8, **heads)
    )
    theirs, ours = LlavaMultiModalProjector(config), MLP()
    ours.setup({"vision": 6}, 8)
    ours.layers[0].load_state_dict(theirs.linear_1.state_dict())
    ours.layers[2].load_state_dict(theirs.linear_2.state_dict())
    tokens = torch.randn(2, 4, 6)
    assert torch.equal(ours({"vision": Features(tokens=tokens, grid=[(2, 2)] * 2)}).tokens, theirs(tokens))


def test_depth_zero_is_refused():
    with pytest.raises(ValueError, match="depth 0 is too small"):
        MLP(depth=0)
