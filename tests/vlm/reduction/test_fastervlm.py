"""FasterVLM: ties by index, and a class token's attention inside a real tower."""

import torch
from transformers import CLIPVisionConfig, CLIPVisionModel

from gnomon.vlm.encoders.hf import HFVision
from gnomon.vlm.executor import reduce_images
from gnomon.vlm.reduction.base import ReduceContext
from gnomon.vlm.reduction.fastervlm import FasterVLM


def test_ties_go_to_the_lowest_index():
    heads = torch.tensor([[0.1, 0.2, 0.3, 0.4], [0.4, 0.3 + 1e-4, 0.2, 0.1]])
    cell = torch.cartesian_prod(torch.arange(2), torch.arange(2))[None]
    ctx = ReduceContext(torch.zeros(1, 4, 3), ["a"], cell, cell[..., 0], (2, 2), saliency=heads.mean(0)[None])
    assert FasterVLM(0.25).plan(ctx).index.flatten().tolist() == [1]
    assert FasterVLM(0.5).plan(ctx).index.flatten().tolist() == [0, 1]
    assert FasterVLM(0.75).plan(ctx).index.flatten().tolist() == [0, 1, 2]


@torch.no_grad()
def test_kept_are_the_patches_that_transformers_class_token_looks_at():
    torch.manual_seed(0)
    tiny = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 48}
    config = CLIPVisionConfig(**tiny, image_size=32, patch_size=4)
    encoder = HFVision(config=config.to_dict()).eval()
    # weights that make attention differ from patch to patch
    for name, weight in encoder.named_parameters():
        if name.endswith(("q_proj.weight", "k_proj.weight")):
            weight.copy_(torch.randn_like(weight))
    whole = CLIPVisionModel._from_config(config, attn_implementation="eager").eval()
    state = {key.removeprefix("tower."): value for key, value in encoder.state_dict().items()}
    prefix = "vision_model." if any(key.startswith("vision_model.") for key in whole.state_dict()) else ""
    whole.load_state_dict({prefix + key: value for key, value in state.items()}, strict=False)
    pixels = torch.randn(2, 3, 32, 32)
    theirs = whole(pixels, output_attentions=True, output_hidden_states=True)
    reducer = FasterVLM(29 / 64)
    kept = reduce_images(
        reducer, encoder(pixels, reducer.needs), names=["a", "b"], pixels=pixels, image=torch.tensor([0, 0])
    )
    order = theirs.attentions[-2][:, :, 0, 1:].sum(1).topk(29).indices.sort().values
    expected = theirs.hidden_states[-2][:, 1:].gather(1, order[..., None].expand(-1, -1, 32))
    torch.testing.assert_close(kept.tokens, expected, atol=1e-5, rtol=1e-4)
