"""Operators in plain transformers models, against the same models with sdpa."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    CLIPVisionConfig,
    CLIPVisionModel,
    SiglipVisionConfig,
    SiglipVisionModel,
    StaticCache,
)
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

from gnomon.vlm.attention import provide, register
from gnomon.vlm.hf import CausalLM
from gnomon.vlm.layout import TokenLayout

BASE = {
    "vocab_size": 40, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": None,
}  # fmt: skip
WINDOWS = {"sliding_window": 5, "layer_types": ["sliding_attention", "full_attention"]}
MODELS = {
    "llama": {"model_type": "llama"},
    "mistral": {"model_type": "mistral", "sliding_window": 5},
    "gemma3": {"model_type": "gemma3_text", "head_dim": 8, "query_pre_attn_scalar": 8, **WINDOWS},
}
PATTERNS = {
    "power": {"block": 2, "local": 1, "first": 0},
    "s2": {"group": 4},
    "infllm_v2": {"top": 2, "block": 2, "local": 0, "first": 1, "pool": 2, "stride": 1, "dense_length": 0},
}


def made(name: str, attention: str):
    settings = dict(BASE | MODELS[name])
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(settings.pop("model_type"), **settings), attn_implementation=attention
    ).eval()
    # the default initial weights are so small that attention hardly matters
    for weight in model.parameters():
        if weight.dim() == 2:
            torch.nn.init.normal_(weight, std=0.2)
    return model


def twins(name: str, attention: str):
    plain, ours = made(name, "sdpa"), made(name, attention)
    ours.load_state_dict(plain.state_dict())
    return plain, ours


def ids(rows: int, length: int) -> Tensor:
    return torch.randint(3, 40, (rows, length), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_exact_attention_is_sdpa(name):
    plain, ours = twins(name, register())
    assert ours.config._attn_implementation == "gnomon_exact"
    tokens = ids(2, 12)
    torch.testing.assert_close(ours(tokens).logits, plain(tokens).logits, atol=1e-5, rtol=1e-5)
    for real in (torch.arange(12) >= torch.tensor([[5], [0]]), torch.arange(12) < torch.tensor([[7], [12]])):
        found, expected = (model(tokens, attention_mask=real.long()).logits[real] for model in (ours, plain))
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("options", [{}, {"num_beams": 3}, {"cache_implementation": "static"}], ids=str)
@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_exact_attention_generates_what_sdpa_does(name, options):
    plain, ours = twins(name, register())
    mask = (torch.arange(9) >= torch.tensor([[4], [0]])).long()
    asked = {"attention_mask": mask, "max_new_tokens": 8, "do_sample": False, **options}
    assert torch.equal(ours.generate(ids(2, 9), **asked), plain.generate(ids(2, 9), **asked))


SAME = {
    "exact": {},
    "power": {"block": 2, "local": 20},
    "s2": {"group": 64},
    "infllm_v2": {"top": 20, "block": 2, "local": 0, "pool": 2, "stride": 1, "dense_length": 0},
}
"""Options with which an operator leaves nothing out of 12 tokens, on the path on which it could."""
REAL = {
    "none": [[1] * 12] * 3,
    "left": [[1] * 12, [0] * 4 + [1] * 8, [0] * 9 + [1] * 3],
    "right": [[1] * 12, [1] * 8 + [0] * 4, [1] * 3 + [0] * 9],
    "hole": [[1] * 12, [1] * 3 + [0] * 2 + [1] * 7, [0] + [1] * 2 + [0] * 6 + [1] * 3],
    "all short": [[1] * 9 + [0] * 3, [1] * 8 + [0] * 4, [1] * 3 + [0] * 9],
}


def read(model, real: Tensor, cuts: list[int], *, static: bool) -> Tensor:
    """Logits of the tokens that are real, read in pieces."""
    cache = StaticCache(config=model.config, max_cache_len=16) if static else None
    logits = []
    for start, stop in zip([0, *cuts], [*cuts, 12]):
        options = {"past_key_values": cache, "use_cache": bool(cuts) or static}
        out = model(ids(3, 12)[:, start:stop], attention_mask=real[:, :stop].long(), **options)
        cache = out.past_key_values
        logits.append(out.logits)
    return torch.cat(logits, 1)[real]


@pytest.mark.parametrize("static", [False, True], ids=["dynamic", "static"])
@pytest.mark.parametrize("cuts", [[], [5], [4, 8], [7, 8, 9]], ids=str)
@pytest.mark.parametrize("padding", REAL)
@pytest.mark.parametrize("operator", SAME)
@torch.no_grad()
def test_padding_anywhere_is_read_as_sdpa_reads_it(operator, padding, cuts, static):
    plain, ours = twins("llama", register(operator, SAME[operator], as_name=f"gnomon_{operator}_same_test"))
    real = torch.tensor(REAL[padding]).bool()
    found, expected = (read(model, real, cuts, static=static) for model in (ours, plain))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
    if not cuts and not static:
        torch.testing.assert_close(read(ours.train(), real, [], static=False), expected, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_packed_samples_do_not_see_each_other():
    plain, ours = twins("llama", register())
    position = torch.tensor([[0, 1, 2, 3, 0, 1, 2, 3, 4]])
    found, expected = (m(ids(1, 9), position_ids=position, use_cache=False).logits for m in (ours, plain))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_gradients_of_exact_attention_are_those_of_sdpa():
    plain, ours = twins("llama", register())
    for model in (plain, ours):
        model(ids(2, 7), labels=ids(2, 7)).loss.backward()
    for one, other in zip(ours.parameters(), plain.parameters()):
        torch.testing.assert_close(one.grad, other.grad, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("operator", ["exact", *PATTERNS])
@pytest.mark.parametrize("padded", [False, True])
def test_nothing_depends_on_what_comes_later(operator, padded):
    model = made("llama", register(operator, PATTERNS.get(operator), as_name=f"gnomon_{operator}_test"))
    model.train()
    embeds = model.get_input_embeddings()(ids(1, 12)).detach().requires_grad_()
    mask = (torch.arange(12) >= (2 if padded else 0)).long()[None]
    out = model(inputs_embeds=embeds, attention_mask=mask, use_cache=False).logits
    for at in (4, 8):
        (gradient,) = torch.autograd.grad(out[0, at].square().sum(), embeds, retain_graph=True)
        assert float(gradient[0, at + 1 :].abs().max()) == 0 and float(gradient[0, at].abs().max()) > 0
        assert float(gradient[0, :2].abs().max()) == 0 or not padded


@pytest.mark.parametrize("operator", ["power", "infllm_v2"])
@torch.no_grad()
def test_cached_decoding_of_a_padded_batch_equals_each_row_at_once(operator):
    model = made("llama", register(operator, PATTERNS[operator], as_name=f"gnomon_{operator}_test"))
    mask = (torch.arange(9) >= torch.tensor([[4], [0]])).long()
    for options in ({}, {"cache_implementation": "static"}):
        found = model.generate(ids(2, 9), attention_mask=mask, max_new_tokens=6, do_sample=False, **options)
        for row, start in zip(found, (4, 0)):
            best = model(row[None, start:], use_cache=False).logits[0].argmax(1)
            assert torch.equal(best[8 - start : -1], row[9:])


@torch.no_grad()
def test_a_pattern_is_the_mask_that_it_says():
    """PowerAttention in blocks of two: sdpa with the mask written out."""
    plain, ours = twins("llama", register("power", PATTERNS["power"], as_name="gnomon_power_test"))
    block = torch.arange(12) // 2
    away = block[:, None] - block
    seen = torch.isin(away, torch.tensor([0, 1, 2, 4, 8])).tril()
    found = ours(ids(1, 12)).logits
    torch.testing.assert_close(found, plain(ids(1, 12), attention_mask=seen[None, None]).logits, atol=1e-5, rtol=1e-5)
    assert float((found - plain(ids(1, 12)).logits).abs().max()) > 1e-3


@torch.no_grad()
def test_s2_is_for_training():
    plain, ours = twins("llama", register("s2", {"group": 4}))
    torch.testing.assert_close(ours(ids(2, 12)).logits, plain(ids(2, 12)).logits, atol=1e-5, rtol=1e-5)
    assert float((ours.train()(ids(2, 12)).logits - plain(ids(2, 12)).logits).abs().max()) > 1e-3


@pytest.mark.parametrize("kind", ["clip", "siglip"])
@torch.no_grad()
def test_in_encoders_everything_is_visible(kind):
    cls, config = {"clip": (CLIPVisionModel, CLIPVisionConfig), "siglip": (SiglipVisionModel, SiglipVisionConfig)}[kind]
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    torch.manual_seed(0)
    plain = cls._from_config(config(**sizes, image_size=32, patch_size=8), attn_implementation="sdpa").eval()
    pixels = torch.randn(2, 3, 32, 32)
    expected = plain(pixels).last_hidden_state
    all_of_it = register("neighborhood", {"window": [4, 4]}, grid=(4, 4), as_name="gnomon_whole_test")
    part = register("neighborhood", {"window": [2, 2]}, grid=(4, 4), as_name="gnomon_part_test")
    for name, same in ((register(), True), (all_of_it, True), (part, False), (register("mala"), False)):
        ours = cls._from_config(config(**sizes, image_size=32, patch_size=8), attn_implementation=name).eval()
        ours.load_state_dict(plain.state_dict())
        found = ours(pixels).last_hidden_state
        assert torch.allclose(found, expected, atol=1e-5) == same and bool(found.isfinite().all())


@pytest.mark.parametrize("name", ["axial", "neighborhood", "agent"])
def test_a_grid_of_other_images_is_refused(name):
    """A class token and 16 cells, where the grid is said to have 20."""
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4}
    options = {"window": [2, 2]} if name == "neighborhood" else {}
    ours = register(name, options, grid=(5, 4), as_name=f"gnomon_{name}_elsewhere_test")
    config = CLIPVisionConfig(**sizes, image_size=32, patch_size=8)
    model = CLIPVisionModel._from_config(config, attn_implementation=ours)
    with pytest.raises(ValueError, match=rf"^operator '{name}': grid \(5, 4\) has 20 cells, .* 17 tokens") as error:
        model(torch.randn(1, 3, 32, 32))
    assert "\n" not in str(error.value)


def test_mask_and_attention_are_registered_together_and_on_use_alone():
    assert "gnomon_plain_test" not in ALL_MASK_ATTENTION_FUNCTIONS.valid_keys()
    register("plain", as_name="gnomon_plain_test")
    assert "gnomon_plain_test" in ALL_MASK_ATTENTION_FUNCTIONS.valid_keys()
    provide("sdpa")
    with pytest.raises(ValueError, match="'nothing' does not exist"):
        provide("gnomon_nothing")


@torch.no_grad()
def test_our_own_loop_takes_the_names_too():
    torch.manual_seed(0)
    ours = CausalLM(config={"model_type": "llama", **BASE}, attention="gnomon_exact").eval()
    torch.manual_seed(0)
    plain = CausalLM(config={"model_type": "llama", **BASE}).eval()
    layout = TokenLayout.text(2, 9)
    found, expected = (lm(lm.embed(ids(2, 9)), layout) for lm in (ours, plain))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


REFUSED = {
    "a grid that nobody tells": (lambda: register("neighborhood", {"window": [2, 2]}), "wants a grid"),
    "no such operator": (lambda: register("nonsense"), "'nonsense' does not exist"),
    "no such option": (lambda: register("power", {"blocks": 2}), "has no option 'blocks'"),
    "tensors": (lambda: register("moh"), "needs weights"),
}


@pytest.mark.parametrize(("call", "why"), REFUSED.values(), ids=list(REFUSED))
def test_what_cannot_be_is_refused(call, why):
    with pytest.raises(ValueError, match=why) as error:
        call()
    assert "\n" not in str(error.value)


RUNS = {
    "a sliding window": ("mistral", "power", {}, "sliding window"),
    "a grid in a decoder": ("llama", "clear", {"radius": 2}, "no grid"),
    "not causal": ("llama", "mala", {}, "keeps a state"),
}


@pytest.mark.parametrize(("name", "operator", "options", "why"), RUNS.values(), ids=list(RUNS))
def test_models_that_cannot_have_an_operator(name, operator, options, why):
    grid = (3, 4) if operator == "clear" else None
    model = made(name, register(operator, options, grid=grid, as_name="gnomon_refused_test"))
    with pytest.raises(ValueError, match=why):
        model(ids(1, 12))


def test_dropout_caps_and_packed_patterns_are_refused():
    model = made("llama", register("power", PATTERNS["power"], as_name="gnomon_power_test"))
    with pytest.raises(ValueError, match="more than causal order and padding"):
        model(ids(1, 6), position_ids=torch.tensor([[0, 1, 2, 0, 1, 2]]), use_cache=False)
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = 0.1
    with pytest.raises(ValueError, match="dropout"):
        model.train()(ids(1, 6))
