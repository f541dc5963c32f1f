from functools import partial

import pytest
import torch
from timm.layers import SwiGLUPacked
from timm.models.vision_transformer import Block as Original
from torch import nn

from gnomon.vlm.multiview.block import Attention, Block, SwiGLU


@pytest.mark.parametrize("qk_norm", [True, False])
@pytest.mark.parametrize("scale", [0.5, None])
def test_is_timms_block(qk_norm: bool, scale: float | None):
    torch.manual_seed(0)
    norm = partial(nn.LayerNorm, eps=1e-5)
    original = Original(24, 3, qkv_bias=True, qk_norm=qk_norm, init_values=scale, norm_layer=norm)
    for parameter in original.parameters():
        nn.init.normal_(parameter, std=0.3)
    ours = Block(24, 3, qk_norm=qk_norm, scale=scale)
    ours.load_state_dict(original.state_dict())
    x = torch.randn(2, 7, 24)
    torch.testing.assert_close(ours(x), original(x), atol=1e-5, rtol=1e-5)


def test_is_timms_swiglu_of_two_thirds_the_width():
    torch.manual_seed(0)
    original = SwiGLUPacked(24, hidden_features=2 * 64)
    ours = SwiGLU(24, 96)
    names = {"fc1": "w12", "fc2": "w3"}
    ours.load_state_dict({names[name[:3]] + name[3:]: value for name, value in original.state_dict().items()})
    x = torch.randn(2, 5, 24)
    torch.testing.assert_close(ours(x), original(x))


def test_attend_gets_what_the_projections_make_of_its_input():
    torch.manual_seed(0)
    attention, x = Attention(8, 2, qk_norm=False), torch.randn(1, 3, 8)

    def values(given, q, k, v):
        assert given is x
        torch.testing.assert_close(torch.cat([q, k, v], -1).transpose(1, 2).flatten(2).shape, (1, 3, 24))
        return v

    expected = attention.proj(attention.qkv(x)[..., 16:])
    torch.testing.assert_close(attention(x, attend=values), expected)


def test_heads_share_the_width():
    with pytest.raises(ValueError, match="width 10 cannot be shared by 3"):
        Attention(10, 3)
