"""The loop against Hugging Face's own forward: the same bits."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from gnomon.vlm.decoder import Kept, Span, attention_mask
from gnomon.vlm.hf import CausalLM
from gnomon.vlm.layout import Kind, TokenLayout

BASE = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
MIXED = {"sliding_window": 5, "layer_types": ["full_attention", "sliding_attention", "sliding_attention"]}
MODELS = {
    "llama": {"model_type": "llama"},
    "llama-mha": {"model_type": "llama", "num_key_value_heads": 4},
    "qwen2": {"model_type": "qwen2", "use_sliding_window": True, **MIXED},
    "qwen3": {"model_type": "qwen3"},
    "mistral": {"model_type": "mistral", "sliding_window": 5},
    "gemma": {"model_type": "gemma", "num_key_value_heads": 1},
    "gemma2": {"model_type": "gemma2", "query_pre_attn_scalar": 8, **MIXED},
    "gemma3": {"model_type": "gemma3_text", "query_pre_attn_scalar": 8, **MIXED},
    "phi3": {"model_type": "phi3", "sliding_window": 5},
    "olmo2": {"model_type": "olmo2"},
    "smollm3": {"model_type": "smollm3", "no_rope_layers": [1, 0, 1]},
}
PLAIN = [name for name in MODELS if "sliding_window" not in MODELS[name]]


# transformers has no causal-LM class for it: its text model is compared
THREE_AXES = {"model_type": "qwen2_5_vl_text", "rope_scaling": {"rope_type": "default", "mrope_section": [2, 1, 1]}}


def make(name: str, **options) -> CausalLM:
    torch.manual_seed(0)
    attention = "eager" if name == "gemma2" else "sdpa"
    config = THREE_AXES if name == "three axes" else MODELS[name]
    lm = CausalLM(config=BASE | config, **{"attention": attention, **options}).eval()
    # the default initial weights are so small that attention hardly matters
    for weight in lm.parameters():
        if weight.dim() == 2:
            torch.nn.init.normal_(weight, std=0.2)
    return lm


def ids(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(3, 97, shape, generator=torch.Generator().manual_seed(seed))


def padded(rows: torch.Tensor, side: str, lengths: list[int]) -> tuple[torch.Tensor, TokenLayout]:
    """HF's attention mask, and our layout with the position ids that HF is given too."""
    length = rows.shape[1]
    place = torch.arange(length).expand_as(rows)
    count = torch.tensor(lengths)[:, None]
    real = place >= length - count if side == "left" else place < count
    layout = TokenLayout.text(*rows.shape)
    layout.kind = torch.where(real, Kind.TEXT, Kind.PAD)
    layout.position = (real.long().cumsum(1) - 1).clamp(min=0)
    return real, layout


def logits(lm: CausalLM, tokens: torch.Tensor, layout: TokenLayout, state=None) -> torch.Tensor:
    return lm.head(lm(lm.embed(tokens), layout, state))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_prefill_has_the_bits_of_hf(name, dtype):
    lm = make(name, dtype=dtype)
    tokens = ids(2, 13)
    ours = logits(lm, tokens, TokenLayout.text(2, 13))
    assert ours.dtype == getattr(torch, dtype)
    assert torch.equal(ours, lm.model(tokens, use_cache=False).logits)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_padded_prefill_has_the_bits_of_hf(name, side):
    lm = make(name)
    tokens = ids(3, 13)
    real, layout = padded(tokens, side, [13, 9, 4])
    theirs = lm.model(tokens, attention_mask=real, position_ids=layout.position, use_cache=False).logits
    ours = logits(lm, tokens, layout)
    assert torch.equal(ours[real], theirs[real])
    assert ours.isfinite().all()


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_eager_attention_has_the_bits_of_hf(name):
    lm = make(name, attention="eager")
    tokens = ids(2, 9)
    theirs = lm.model(tokens, use_cache=False).logits
    assert torch.equal(logits(lm, tokens, TokenLayout.text(2, 9)), theirs)
    # HF's cache changes the memory order of the first keys, and with it the last bits
    assert torch.equal(
        logits(lm, tokens, TokenLayout.text(2, 9), lm.new_state()), lm.model(tokens, use_cache=True).logits
    )


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_training_gradients_have_the_bits_of_hf(name, checkpointing):
    lm = make(name, checkpointing=checkpointing).train()
    tokens = ids(2, 11)
    real, layout = padded(tokens, "right", [11, 7])
    labels = tokens.masked_fill(~real, -100)

    def gradients(output):
        lm.zero_grad()
        F.cross_entropy(output[:, :-1].flatten(0, 1), labels[:, 1:].flatten()).backward()
        return {key: weight.grad.clone() for key, weight in lm.named_parameters()}

    theirs = gradients(lm.model(tokens, attention_mask=real, position_ids=layout.position, use_cache=False).logits)
    ours = gradients(logits(lm, tokens, layout))
    for key, gradient in theirs.items():
        assert torch.equal(ours[key], gradient), key
        assert gradient.abs().sum() > 0, key


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("name", ["llama", "gemma2", "qwen3"])
def test_what_leaves_a_layer_has_the_bits_of_hf(name, checkpointing):
    lm = make(name, checkpointing=checkpointing).train()
    tokens, kept = ids(2, 9), Kept([0, 1])
    hidden = lm(lm.embed(tokens), TokenLayout.text(2, 9), kept=kept)
    expected = lm.model.model(tokens, output_hidden_states=True, use_cache=False)
    assert kept.hidden.keys() == kept.layout.keys() == {0, 1}
    for layer, found in kept.hidden.items():
        # the first of HF's are the embeddings
        assert torch.equal(found, expected.hidden_states[layer + 1])
    assert torch.equal(hidden, expected.last_hidden_state)
    kept.hidden[0].sum().backward()
    used = [
        bool(p.grad is not None and p.grad.any()) for p in (lm.layers[0].mlp.up_proj.weight, *lm.layers[1].parameters())
    ]
    assert used[0] and not any(used[1:])


def test_checkpointing_runs_each_layer_again_in_the_backward_pass_only_when_training():
    lm = make("llama", checkpointing=True).train()
    calls = []
    for layer in lm.layers:
        layer.register_forward_pre_hook(lambda *_: calls.append(1))
    logits(lm, ids(1, 5), TokenLayout.text(1, 5)).sum().backward()
    assert len(calls) == 2 * len(lm.layers)
    with torch.no_grad():
        logits(lm, ids(1, 5), TokenLayout.text(1, 5), lm.new_state())
    assert len(calls) == 3 * len(lm.layers)


@pytest.mark.parametrize("pad", [0, 4])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_cached_decoding_has_the_bits_of_hf(name, attention, pad):
    lm = make(name, attention="eager" if name == "gemma2" else attention)
    tokens = ids(2, 19)
    real, layout = padded(tokens, "left", [19, 19 - pad])
    whole = logits(lm, tokens, layout)
    state, cache = lm.new_state(), None
    # a prompt, a chunk, then single tokens
    for start, end in [(0, 7), (7, 10), *((i, i + 1) for i in range(10, 19))]:
        part = slice(start, end)
        step = TokenLayout.text(2, end - start)
        step.kind, step.position = layout.kind[:, part], layout.position[:, part]
        ours = logits(lm, tokens[:, part], step, state)
        theirs = lm.model(
            tokens[:, part],
            attention_mask=real[:, :end],
            position_ids=layout.position[:, part],
            past_key_values=cache,
            use_cache=True,
        )
        cache, shown = theirs.past_key_values, real[:, part]
        assert torch.equal(ours[shown], theirs.logits[shown])
        torch.testing.assert_close(ours[shown], whole[:, part][shown], atol=1e-4, rtol=1e-4)


def packed(lengths: list[int]) -> TokenLayout:
    layout = TokenLayout.text(1, sum(lengths))
    layout.position = torch.cat([torch.arange(length) for length in lengths])[None]
    layout.document = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))[None]
    return layout


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_packed_documents_are_alone(name):
    lm = make(name)
    tokens, lengths = ids(1, 17), [8, 3, 6]
    layout = packed(lengths)
    together = logits(lm, tokens, layout)
    assert torch.equal(together, lm.model(tokens, position_ids=layout.position, use_cache=False).logits)
    for part, whole in zip(tokens.split(lengths, 1), together.split(lengths, 1)):
        alone = lm.model(part).logits
        torch.testing.assert_close(whole, alone, atol=1e-5, rtol=1e-5)
    other = tokens.clone()
    other[:, :8] = ids(1, 8, seed=1)
    changed = logits(lm, other, layout)
    assert torch.equal(changed[:, 8:], together[:, 8:])
    assert not torch.equal(changed[:, :8], together[:, :8])


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_a_row_of_a_batch_is_the_row_alone(name):
    lm = make(name)
    tokens, lengths = ids(3, 12), [12, 8, 3]
    _, layout = padded(tokens, "left", lengths)
    together = logits(lm, tokens, layout)
    for row, length in enumerate(lengths):
        alone = logits(lm, tokens[row : row + 1, -length:], TokenLayout.text(1, length))
        torch.testing.assert_close(together[row, -length:], alone[0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["llama", "mistral", "gemma3"])
@torch.no_grad()
def test_state_rows_can_be_reordered_and_dropped(name):
    lm = make(name)
    tokens = ids(3, 11)
    rows = torch.tensor([2, 0, 0])
    state = lm.new_state()
    logits(lm, tokens[:, :10], TokenLayout.text(3, 10), state)
    state.select(rows)
    ours = logits(lm, tokens[rows, 10:], TokenLayout.text(3, 1, start=10), state)
    torch.testing.assert_close(ours[:, 0], lm.model(tokens[rows]).logits[:, -1], atol=1e-5, rtol=1e-5)
    # layers that hold the same tokens go on sharing one span, and with it one mask
    kinds = {(cache.window, id(cache.span)) for cache in state.layers}
    assert len(kinds) == len(set(lm.windows))


@torch.no_grad()
def test_windowed_layers_keep_no_more_than_they_can_see():
    lm = make("gemma3")
    state = lm.new_state()
    logits(lm, ids(1, 12), TokenLayout.text(1, 12), state)
    assert [cache.keys.shape[2] for cache in state.layers] == [12, 4, 4]
    assert [cache.span.position[0, 0].item() for cache in state.layers] == [0, 8, 8]


def test_mask_of_a_small_case_by_hand():
    span = Span(
        visible=torch.tensor([[False, True, True, True, True]]),
        position=torch.tensor([[0, 0, 1, 2, 0]]),
        document=torch.tensor([[0, 0, 0, 0, 1]]),
    )
    expected = [[1, 0, 0, 0, 0], [0, 1, 0, 0, 0], [0, 1, 1, 0, 0], [0, 0, 1, 1, 0], [0, 0, 0, 0, 1]]
    assert attention_mask(span, span, 2)[0, 0].long().tolist() == expected


def test_positions_with_three_axes_are_refused():
    layout = TokenLayout.text(1, 4)
    layout.position = layout.position.expand(3, 1, 4)
    lm = make("llama")
    with pytest.raises(ValueError, match="one axis"):
        lm(lm.embed(ids(1, 4)), layout)


def three_axes() -> torch.Tensor:
    """(3,2,13) as of a picture of 2 x 3 tokens between words, in the second row behind padding."""
    place = torch.cartesian_prod(torch.arange(1), torch.arange(2), torch.arange(3)).T
    words = torch.arange(13).expand(3, -1)
    first = torch.cat([words[:, :3], place + 3, words[:, 6:10]], 1)
    second = torch.cat([words[:, :4] * 0, words[:, :2], place + 2, words[:, 5:6]], 1)
    return torch.stack([first, second], 1)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("axes", [1, 3])
@torch.no_grad()
def test_three_axes_have_the_bits_of_hf(axes, dtype):
    lm = make("three axes", dtype=dtype)
    tokens = ids(2, 13)
    real, layout = padded(tokens, "left", [13, 9])
    layout.position = three_axes() if axes == 3 else layout.position
    theirs = lm.model.model(tokens, attention_mask=real, position_ids=three_axes() if axes == 3 else layout.position)
    ours = lm(lm.embed(tokens), layout, lm.new_state())
    assert torch.equal(ours[real], theirs.last_hidden_state[real])
    assert lm.axes == 3 and not torch.equal(ours, lm(lm.embed(tokens), TokenLayout.text(2, 13)))


@torch.no_grad()
def test_one_axis_is_all_that_a_text_decoder_takes():
    lm = make("qwen2")
    layout = TokenLayout.text(2, 13)
    layout.position = layout.position.expand(3, -1, -1)
    assert lm.axes == 1
    with pytest.raises(ValueError, match=r"positions of shape \(3, 2, 13\): .* take \(B,T\)"):
        lm(lm.embed(ids(2, 13)), layout)


def test_three_axes_with_windows_are_refused():
    windows = {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 0}
    with pytest.raises(ValueError, match="qwen2_5_vl_text with sliding windows is not supported"):
        CausalLM(config={**BASE, **THREE_AXES, **windows})
