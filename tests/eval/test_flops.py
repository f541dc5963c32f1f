"""The formula against torch's own counter, and cache bytes against the caches."""

import pytest
import torch

from gnomon.eval.flops import Decoder
from gnomon.vlm.hf import CausalLM
from gnomon.vlm.layout import TokenLayout

BASE = {
    "vocab_size": 97, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
MODELS = {
    "llama": {"model_type": "llama"},
    "llama-mha": {"model_type": "llama", "num_key_value_heads": 4},
    "qwen3": {"model_type": "qwen3", "head_dim": 32},
    "gemma2": {"model_type": "gemma2", "head_dim": 16, "query_pre_attn_scalar": 16},
    "phi3": {"model_type": "phi3"},
}


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_operations_are_those_that_torch_counts(name, attention, flop_counter):
    if name == "gemma2":
        attention = "eager"
    lm = CausalLM(config=BASE | MODELS[name], attention=attention).eval()
    shape, state = Decoder.of(lm), lm.new_state()
    with flop_counter() as prefill:
        lm(torch.randn(1, 50, 64), TokenLayout.text(1, 50), state)
    assert shape.prefill([50] * 3) == pytest.approx(prefill.get_total_flops(), rel=0.01)
    assert shape.cache_bytes([50] * 3, 4) == sum(c.keys.nbytes + c.values.nbytes for c in state.layers)
    with flop_counter() as step:
        lm.head(lm(torch.randn(1, 1, 64), TokenLayout.text(1, 1, start=50), state))
    assert shape.step([51] * 3) == pytest.approx(step.get_total_flops(), rel=0.01)


def test_published_figures():
    """LLaVA-1.5-7B, in multiply-adds: 4.252 T with 576 visual and 64 text tokens, 0.833 T with 64 visual ones."""
    vicuna = Decoder(layers=32, width=4096, inner=11008, heads=32, key_heads=32, head_width=128, vocabulary=32000)
    assert vicuna.prefill([640] * 32) / 2e12 == pytest.approx(4.252, abs=5e-4)
    assert vicuna.prefill([128] * 32) / 2e12 == pytest.approx(0.833, abs=5e-4)
    # FastV: half of the visual tokens before layer 2
    assert vicuna.prefill([640] * 2 + [352] * 30) / 2e12 == pytest.approx(2.433, abs=5e-4)
    assert vicuna.cache_bytes([640] * 2 + [352] * 30, 2) / 2**20 == pytest.approx(185, abs=0.5)


def test_causal_attention_is_the_lower_triangle():
    shape = Decoder(layers=1, width=8, inner=0, heads=1, key_heads=0, head_width=8, vocabulary=0)
    pairs = sum(1 for query in range(5) for key in range(5) if key <= query)
    linear = shape.layer(5, 0)
    assert shape.prefill([5], causal=True) - linear == 2 * pairs * 2 * 8
    assert shape.prefill([5]) - linear == 2 * 25 * 2 * 8
