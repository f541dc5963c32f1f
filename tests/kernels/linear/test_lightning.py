"""Lightning attention: schedules worked out by hand, and the layer of a MiniMax model."""

import pytest
import torch
from transformers import MiniMaxConfig
from transformers.models.minimax.modeling_minimax import MiniMaxLightningAttention

from gnomon.kernels.linear.lightning import lightning, slopes
from gnomon.kernels.mask import CAUSAL


def test_by_hand():
    """One channel, decay ln 2: a memory halves with every token."""
    q, k, v = (torch.tensor(x, dtype=torch.float64).reshape(1, 3, 1, 1) for x in ([1, 1, 2], [1, 1, 1], [8, 2, 1]))
    rate = torch.tensor([2.0], dtype=torch.float64).log()
    o, state = lightning(q, k, v, decay=rate, mask=CAUSAL)
    torch.testing.assert_close(o.flatten(), torch.tensor([8.0, 6.0, 8.0], dtype=torch.float64))
    torch.testing.assert_close(state["s"].flatten(), torch.tensor([4.0], dtype=torch.float64))


def test_schedules():
    assert slopes("paper", heads=4, layer=0, layers=2).tolist() == [0.0, 2.0, 4.0, 6.0]
    assert slopes("paper", heads=4, layer=1, layers=2).tolist() == [0.0, 1.0, 2.0, 3.0]
    full = 1 + 1e-5
    assert slopes("alibi", heads=4, layer=0, layers=3).tolist() == [2.0**-n * full for n in (2, 4, 6, 8)]
    # six heads: the four of the power below, and the first and third of eight
    assert slopes("alibi", heads=6, layer=0, layers=3).tolist() == [2.0**-n * full for n in (2, 4, 6, 8, 1, 3)]
    assert slopes("alibi", heads=4, layer=1, layers=3)[0].item() == 0.25 * (0.5 + 1e-5)
    with pytest.raises(ValueError, match="schedule 'tnl'"):
        slopes("tnl", heads=4, layer=0, layers=3)
    with pytest.raises(ValueError, match="layer 3 of 3"):
        slopes("paper", heads=4, layer=3, layers=3)


@pytest.mark.parametrize("impl", ["reference", "recurrent", "chunk"])
def test_layer_of_minimax(impl):
    config = MiniMaxConfig(hidden_size=24, num_attention_heads=3, head_dim=8, num_hidden_layers=4, block_size=16)
    torch.manual_seed(0)
    layer = MiniMaxLightningAttention(config, layer_idx=2)
    x = torch.randn(2, 40, 24)
    expected, state = layer(x, position_embeddings=None, attention_mask=None)
    q, k, v = layer.act_fn(layer.qkv_proj(x)).unflatten(-1, (3, 24)).chunk(3, -1)
    o, mine = lightning(q, k, v, decay=slopes("minimax", heads=3, layer=2, layers=4), mask=CAUSAL, impl=impl)
    y = layer.out_proj(layer.output_gate(x).sigmoid() * layer.norm(o.flatten(2)))
    torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(mine["s"], state, rtol=1e-4, atol=1e-5)


def test_limits_of_the_decay():
    """Without decay the masked product; with a great one each token sees itself alone."""
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 70, 2, 4, dtype=torch.float64) for _ in range(3))
    scores = torch.einsum("bqhd,bkhd->bhqk", q, k)
    still, _ = lightning(q, k, v, decay=torch.zeros(2), mask=CAUSAL)
    torch.testing.assert_close(still, torch.einsum("bhqk,bkhv->bqhv", scores.tril(), v))
    gone, _ = lightning(q, k, v, decay=torch.full((2,), 500.0), mask=CAUSAL)
    torch.testing.assert_close(gone, (q * k).sum(-1, keepdim=True) * v)


def test_decay_of_another_count_of_heads():
    x = torch.randn(1, 3, 4, 2)
    with pytest.raises(ValueError, match=r"^lightning: decay has shape \(3,\); give \(4,\)$"):
        lightning(x, x, x, decay=torch.zeros(3), mask=CAUSAL)
