"""NAAViT: a visual token goes through the layers by itself."""

import pytest
import torch

from gnomon.vlm.compute.naavit import NAAViT
from gnomon.vlm.layout import Batch, Kind, TokenLayout


@torch.no_grad()
def test_visual_tokens_pass_the_feed_forward_parts_alone(tiny):
    torch.manual_seed(0)
    model = tiny(compute=NAAViT())
    layout = TokenLayout.text(1, 22)
    layout.kind[:, 2:18], layout.image[:, 2:18] = Kind.IMAGE, 0
    layout.cell[:, 2:18] = torch.cartesian_prod(torch.arange(4), torch.arange(4))
    ids = torch.arange(22)[None] + 3
    batch = Batch(ids, ids, layout, [torch.randint(0, 256, (3, 32, 32), dtype=torch.uint8)], samples=["a"])
    hidden = model.embed(batch)[0][:, 2:18]
    for layer in model.lm.layers:
        hidden = hidden + layer.mlp(layer.post_attention_layernorm(hidden))
    found = model.read(batch).hidden
    torch.testing.assert_close(found[:, 2:18], model.lm.normed(hidden), atol=1e-5, rtol=1e-5)
    # and the text reads them
    other = Batch(ids, ids, layout, [255 - batch.pixels[0]], samples=["a"])
    assert float((model.read(other).hidden[:, 18:] - found[:, 18:]).abs().max()) > 1e-4


@pytest.mark.parametrize("start", [-1, 3, True, 0.5])
def test_bad_options(tiny, start):
    with pytest.raises(ValueError, match=r"start .* 0 to 2"):
        tiny(compute=NAAViT(start))
