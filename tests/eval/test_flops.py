"""The formula against torch's own counter, and cache bytes against the caches."""

import pytest
import torch

from gnomon.eval.flops import Decoder
from gnomon.vlm.hf import CausalLM
from gnomon.vlm.layout import Kind, TokenLayout
from gnomon.vlm.mixers.affine_scaled import AffineScaled
from gnomon.vlm.mixers.based import Based
from gnomon.vlm.mixers.deltanet import DeltaNet
from gnomon.vlm.mixers.gla import GLA
from gnomon.vlm.mixers.grouped_differential import GroupedDifferential
from gnomon.vlm.mixers.lolcats import LoLCATs
from gnomon.vlm.mixers.moh import MoH

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


def made(*, operators: list[dict] | None = None) -> CausalLM:
    torch.manual_seed(0)
    return CausalLM(config=BASE | MODELS["llama"], operators=operators or ()).eval()


@torch.no_grad()
def test_an_operator_that_is_softmax_attention_counts_as_it(flop_counter):
    lm = made(operators=[{"name": "exact", "layers": [0, 2]}])
    shape = Decoder.of(lm)
    with flop_counter() as counter:
        lm(torch.randn(1, 50, 64), TokenLayout.text(1, 50))
    assert shape.prefill([50] * 3) == pytest.approx(counter.get_total_flops(), rel=0.01)
    assert shape.prefill([50] * 3, causal=True) < shape.prefill([50] * 3)
    assert shape.step([51] * 3) == Decoder.of(made()).step([51] * 3)
    assert shape.cache_bytes([50] * 3, 4) == Decoder.of(made()).cache_bytes([50] * 3, 4)


def test_a_pattern_counts_the_pairs_that_it_lets_through():
    """Three words, an image of 5 x 4, two words; cells of the image see 3 x 3 of it, as far as they come first."""
    words = [(Kind.TEXT, -1, -1, -1)]
    line = words * 3 + [(Kind.IMAGE, 0, y, x) for y in range(5) for x in range(4)] + words * 2
    table = torch.tensor(line)[None]
    layout = TokenLayout(table[..., 0], table[..., 1], table[..., 2:], torch.arange(25)[None])

    def near(a: int, b: int, extent: int) -> bool:
        return 0 <= b - min(max(a - 1, 0), extent - 3) < 3

    def seen(q: int, k: int) -> bool:
        (_, image, y, x), (_, other, v, u) = line[q], line[k]
        return image < 0 or other < 0 or (near(y, v, 5) and near(x, u, 4))

    pairs = sum(seen(q, k) for q in range(25) for k in range(q + 1))
    lm = made(operators=[{"name": "neighborhood", "options": {"window": [3, 3]}, "layers": [1]}])
    found, dense = Decoder.of(lm, layout), Decoder.of(made())
    spared = dense.prefill([25] * 3, causal=True) - found.prefill([25] * 3, causal=True)
    assert spared == pytest.approx((25 * 26 / 2 - pairs) * 4 * 4 * 16) and spared > 0
    # a word behind an image sees all of it
    assert found.step([26] * 3) == dense.step([26] * 3)
    # text is seen at distances of 0, 1, 2, 4, 8: the last of nine words sees five
    lm = made(operators=[{"name": "power", "options": {"block": 1, "local": 1, "first": 0}, "layers": [0, 1]}])
    pairs = sum((q - k) & (q - k - 1) == 0 for q in range(9) for k in range(q + 1))
    spared = dense.prefill([9] * 3, causal=True) - Decoder.of(lm).prefill([9] * 3, causal=True)
    assert spared == pytest.approx(2 * (45 - pairs) * 4 * 4 * 16)
    assert dense.step([9] * 3) - Decoder.of(lm).step([9] * 3) == 2 * (9 - 5) * 4 * 4 * 16


# Per token and head, at 128 tokens and a head width of 16: what a state takes to write and to read, and the half of a
# chunk of 64 that a token sees; the delta rule reads the state once more and solves for its values.
NEAR = 64
MIXERS = {
    "gla": (GLA, 4 * 16 * 16 + NEAR * 32),
    "deltanet": (DeltaNet, 6 * 16 * 16 + NEAR * (32 + 48)),
    # 1 + 8 + 36 features, and the sum of the weights beside the values
    "based": (lambda layers: Based(layers, feature=8), 4 * 45 * 17 + NEAR * (8 + 17)),
}


@pytest.mark.parametrize("name", MIXERS)
@torch.no_grad()
def test_a_mixer_counts_its_maps_and_its_operator(name, flop_counter):
    mixer, inside = MIXERS[name]
    lm = made()
    lm.mix([mixer([0, 2])])
    shape = Decoder.of(lm)
    with flop_counter() as counter:
        lm(torch.randn(1, 128, 64), TokenLayout.text(1, 128))
    counted = {key.partition("layers.0.")[2]: sum(v.values()) for key, v in counter.get_flop_counts().items()}
    seat = lm.layers[0].self_attn
    modules = [key for key, module in seat.named_modules() if isinstance(module, torch.nn.Linear)]
    maps = sum(counted[f"self_attn.{key}"] for key in modules)
    convolved = sum(2 * 128 * p.numel() for key, p in seat.named_parameters() if ".convs." in key)
    feed_forward = 2 * 128 * 3 * 64 * 96
    mixed = maps + convolved + feed_forward + 128 * 4 * inside
    softmax = Decoder.of(made()).prefill([128])
    assert shape.prefill([128] * 3) == 2 * mixed + softmax
    assert shape.prefill([128] * 3, causal=True) < shape.prefill([128] * 3)


@pytest.mark.parametrize("mixer", [GLA, DeltaNet, Based, LoLCATs])
@torch.no_grad()
def test_what_mixers_remember(mixer):
    lm = made()
    lm.mix([mixer([0, 2])])
    state = lm.new_state()
    lm(torch.randn(1, 70, 64), TokenLayout.text(1, 70), state)
    kept = sum(x.nbytes for i in (0, 2) for x in state.layers[i].memory.values())
    kept += state.layers[1].keys.nbytes + state.layers[1].values.nbytes
    shape = Decoder.of(lm)
    assert shape.cache_bytes([70] * 3, 4) == kept
    # one more token costs the same, however many there were
    assert shape.step([70] * 3) - shape.step([50] * 3) == 20 * 4 * 4 * 16


@pytest.mark.parametrize("mixer", [AffineScaled, MoH, GroupedDifferential])
@torch.no_grad()
def test_a_mixer_of_softmax_counts_every_key_that_it_remembers(mixer, flop_counter):
    lm = made()
    lm.mix([mixer([0, 2])])
    shape, state = Decoder.of(lm), lm.new_state()
    with flop_counter() as prefill:
        lm(torch.randn(1, 300, 64), TokenLayout.text(1, 300), state)
    # torch's kernel for the CPU reads queries and keys with zeros up to the width of the values, which is twice theirs
    zeros = 2 * 4 * 2 * 300**2 * 16 if mixer is GroupedDifferential else 0
    assert shape.prefill([300] * 3) == pytest.approx(prefill.get_total_flops() - zeros, rel=0.02)
    kept = sum(x.nbytes for i in (0, 2) for x in state.layers[i].memory.values())
    kept += state.layers[1].keys.nbytes + state.layers[1].values.nbytes
    assert shape.cache_bytes([300] * 3, 4) == kept
    with flop_counter() as step:
        lm.head(lm(torch.randn(1, 1, 64), TokenLayout.text(1, 1, start=300), state))
    # the mean of the values that are seen is no attention
    mean = 2 * 2 * 301 * 2 * 16 if mixer is AffineScaled else 0
    assert shape.step([301] * 3) == pytest.approx(step.get_total_flops() - mean, rel=0.02)
    # of four pairs of two words three are seen
    pairs = sum(shape.instead[i].inside(2, 2, False) for i in (0, 2)) + shape.attention(4)
    assert shape.prefill([2] * 3) - shape.prefill([2] * 3, causal=True) == pairs / 4
