"""Mixers in the layers of transformers models: where they go, what they take over, what is refused."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from gnomon.vlm.compute.saisa import SAISA
from gnomon.vlm.decoder import MixerCache
from gnomon.vlm.hf import CausalLM
from gnomon.vlm.layout import Kind, TokenLayout
from gnomon.vlm.mixers.agent import Agent
from gnomon.vlm.mixers.base import Mixer, Rows, lessons
from gnomon.vlm.mixers.deltanet import DeltaNet
from gnomon.vlm.mixers.gla import GLA
from gnomon.vlm.mixers.hedgehog import Hedgehog
from gnomon.vlm.mixers.lolcats import LoLCATs
from gnomon.vlm.mixing import Seat
from gnomon.vlm.placement import chosen
from gnomon.vlm.reduction.fastv import FastV

SIZES = {
    "vocab_size": 40, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "pad_token_id": 0,
}  # fmt: skip
KINDS = {
    "llama": {},
    "mistral": {"sliding_window": None},
    "qwen2": {},
    "qwen3": {},
    "gemma": {},
    "gemma3_text": {"query_pre_attn_scalar": 32, "sliding_window": 64},
    "olmo2": {},
    "phi3": {},
    "smollm3": {"no_rope_layers": [1, 0, 1, 1]},
}
IDS = torch.arange(3, 15)[None]


def made(kind: str = "qwen2", *, operators: list[dict] | None = None, **more) -> CausalLM:
    torch.manual_seed(0)
    config = {"model_type": kind, **SIZES, **KINDS[kind], **more}
    return CausalLM(config=config, operators=operators or ()).eval()


def read(lm: CausalLM) -> torch.Tensor:
    return lm.head(lm(lm.embed(IDS), TokenLayout.text(1, 12)))


def seats(lm: CausalLM) -> dict[int, type[Mixer]]:
    return {i: type(x.self_attn.mixer) for i, x in enumerate(lm.layers) if isinstance(x.self_attn, Seat)}


@pytest.mark.parametrize(
    ("layers", "depth", "expected"),
    [
        ("all", 3, [0, 1, 2]),
        ("3:1", 9, [0, 1, 2, 4, 5, 6, 8]),
        ("1:2", 7, [0, 3, 6]),
        ("3 of 4", 9, [0, 1, 2, 4, 5, 6, 8]),
        ("2 of 2", 3, [0, 1, 2]),
        ("2:0", 3, [0, 1, 2]),
        ([4, 1], 5, [1, 4]),
    ],
)
def test_layers_are_chosen_as_yaml_says(layers, depth, expected):
    assert chosen(layers, depth, what="it") == expected


@pytest.mark.parametrize("layers", ["some", "0:1", "3:1:2", "3 of 2", 181, [], [1, 1], [-1], [5]])
def test_layers_that_are_none_are_refused(layers):
    with pytest.raises(ValueError, match=r"^it: layers .*"):
        chosen(layers, 5, what="it")


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_a_converted_checkpoint_answers_as_before_while_its_window_holds_all(kind, tmp_path):
    """Projections, norms of queries and keys, rotation and scale are all taken over: the logits are transformers'."""
    torch.manual_seed(0)
    theirs = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **SIZES, **KINDS[kind])).eval()
    for name, weight in theirs.named_parameters():
        torch.nn.init.normal_(weight, mean=1.0 if "norm" in name else 0.0, std=0.15)
    theirs.save_pretrained(tmp_path)
    lm = CausalLM(str(tmp_path)).eval()
    lm.mix([LoLCATs("all", window=12)])
    assert len(seats(lm)) == 4
    torch.testing.assert_close(read(lm), theirs(IDS).logits, atol=2e-4, rtol=1e-3)


@pytest.mark.parametrize(
    ("kind", "more"),
    [
        ("qwen2", {}),
        ("mistral", {"sliding_window": 4}),
        ("gemma3_text", {"sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"] * 2}),
    ],
)
@torch.no_grad()
def test_attention_transfer_reads_as_the_model_did_before(kind, more):
    plain, lm = made(kind, **more), made(kind, **more)
    lm.mix([Hedgehog([0, 2])])
    with lessons(lm) as given:
        found = read(lm)
    torch.testing.assert_close(found, read(plain), atol=1e-5, rtol=1e-4)
    assert sorted(given.errors) == [0, 2] and all(float(error) > 0 for error in given.errors.values())
    assert float((read(lm) - found).abs().max()) > 1e-4


def error_of(lm: CausalLM, layer: int) -> torch.Tensor:
    """By hand: transformers' attention against the mixer's answer to the same input, which the layers below made."""
    plain = made(initializer_range=0.3)
    seen = []
    plain.layers[layer].self_attn.o_proj.register_forward_hook(lambda _, given, __: seen.append(given[0]))
    plain.layers[layer].self_attn.register_forward_pre_hook(
        lambda _, __, given: seen.append((given["hidden_states"], given["position_embeddings"])), with_kwargs=True
    )
    read(plain)
    (x, tables), truth = seen
    mixer = lm.layers[layer].self_attn.mixer
    q, k = mixer.turned(mixer.project("q", x), mixer.project("k", x), tables)
    found, _ = mixer.mix(q, k, mixer.project("v", x), Rows(TokenLayout.text(1, 12), None), None)
    return (found.flatten(2) - truth).square().mean()


@pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "recomputed"])
def test_lessons_teach_the_maps_of_every_layer_and_nothing_else(checkpointing):
    lm = made(initializer_range=0.3)
    lm.mix([Hedgehog([0, 2]), LoLCATs([3], window=2)])
    maps = {name: p for name, p in lm.named_parameters() if ".learned_" in name}
    errors = {layer: error_of(lm, layer) for layer in (0, 2, 3)}
    expected = torch.autograd.grad(7 * sum(errors.values()), list(maps.values()))
    lm.checkpointing = checkpointing
    lm.train()
    with lessons(lm, weight=7.0) as given:
        read(lm).square().sum().backward()
    for layer, error in errors.items():
        torch.testing.assert_close(given.errors[layer], error.detach(), atol=1e-6, rtol=1e-4)
    for (name, parameter), gradient in zip(maps.items(), expected):
        assert float(gradient.abs().max()) > 0, name
        torch.testing.assert_close(parameter.grad, gradient, atol=1e-5, rtol=1e-3)
    # the language loss ends where the highest taught layer begins
    assert lm.model.model.embed_tokens.weight.grad is None
    assert all(p.grad is None for layer in (0, 1, 2) for p in lm.layers[layer].mlp.parameters())


@pytest.mark.parametrize(("kind", "window"), [("qwen2", {}), ("mistral", {"sliding_window": 4})])
def test_a_sample_has_one_error_whatever_its_row(kind, window):
    """Alone, with padding, or packed with another: errors are means over samples of means over tokens."""
    lm = made(kind, initializer_range=0.3, **window).requires_grad_(False)
    lm.mix([Hedgehog([1])])
    samples = [list(range(3, 15)), [20, 21, 22, 23, 24]]

    def taught(ids: list[list[int]], layout: TokenLayout) -> tuple[torch.Tensor, torch.Tensor]:
        lm.zero_grad()
        with lessons(lm) as given:
            lm(lm.embed(torch.tensor(ids)), layout).sum().backward()
        return given.errors[1], lm.layers[1].self_attn.mixer.learned_q.weight.grad

    alone = [taught([ids], TokenLayout.text(1, len(ids))) for ids in samples]
    expected = [sum(values) / 2 for values in zip(*alone)]
    assert float(alone[0][0]) > 2 * float(alone[1][0]) or float(alone[1][0]) > 1.1 * float(alone[0][0])
    for places in ([7, 8, 9, 10, 11], [0, 1, 2, 3, 4], [1, 4, 5, 8, 10]):
        layout, second = TokenLayout.text(2, 12), torch.zeros(12).long()
        layout.kind[1] = Kind.PAD
        layout.kind[1, places], second[places] = Kind.TEXT, torch.tensor(samples[1])
        layout.position = (layout.visible.long().cumsum(1) - 1).clamp(min=0)
        rows = [samples[0], second.tolist()]
        torch.testing.assert_close(list(taught(rows, layout)), expected, atol=1e-6, rtol=1e-4)
    packed = TokenLayout.text(1, 17)
    packed.position = torch.tensor([[*range(12), *range(5)]])
    packed.document = torch.tensor([[0] * 12 + [1] * 5])
    torch.testing.assert_close(list(taught([samples[0] + samples[1]], packed)), expected, atol=1e-6, rtol=1e-4)


def test_each_layer_has_the_mixer_that_is_for_it_and_all_else_stays():
    lm, plain = made(), made()
    lm.mix([GLA([0]), DeltaNet([1, 3])])
    assert seats(lm) == {0: GLA, 1: DeltaNet, 3: DeltaNet}
    assert lm.layers[1].self_attn.mixer is not lm.layers[3].self_attn.mixer
    # nothing outside of the mixers changed, and their maps are the attention's own
    own, before = lm.state_dict(), plain.state_dict()
    for name, value in before.items():
        layer = name.split(".self_attn.")
        mixed = len(layer) == 2 and int(layer[0].rpartition(".")[2]) in seats(lm)
        assert torch.equal(own[name.replace("self_attn.", "self_attn.mixer.") if mixed else name], value)
    state = lm.new_state()
    assert [isinstance(cache, MixerCache) for cache in state.layers] == [True, True, False, True]


@torch.no_grad()
def test_what_a_mixer_remembers_does_not_grow():
    lm = made()
    lm.mix([GLA("3:1"), LoLCATs([3], window=4)])
    state = lm.new_state()
    lm(lm.embed(IDS), TokenLayout.text(1, 12), state)
    sizes = [{n: m.shape for n, m in cache.memory.items()} for cache in state.layers]
    for t in range(12, 20):
        lm(lm.embed(torch.tensor([[5]])), TokenLayout.text(1, 1, start=t), state)
    assert [{n: m.shape for n, m in cache.memory.items()} for cache in state.layers] == sizes
    assert sizes[0]["s"] == (1, 4, 8, 8)


def refused(call, why: str) -> None:
    with pytest.raises(ValueError, match=why) as error:
        call()
    assert "\n" not in str(error.value)


@torch.no_grad()
def test_calls_that_cannot_be_gone_on_with_are_refused():
    lm = made()
    lm.mix([GLA([0]), DeltaNet([1]), LoLCATs([2])])
    state, layout = lm.new_state(), TokenLayout.text(1, 12)
    layout.kind[:] = Kind.PAD
    refused(lambda: lm(lm.embed(IDS), layout, state), "12 tokens that are all padding")
    lm(lm.embed(IDS), replace(TokenLayout.text(1, 12), document=torch.zeros(1, 12).long()), state)
    packed = replace(TokenLayout.text(1, 12, start=12), document=torch.tensor([[0] * 5 + [1] * 7]))
    refused(lambda: lm(lm.embed(IDS), packed, state), "packed samples in a call that goes on")


def test_what_cannot_be_is_refused(tiny):
    refused(lambda: made().mix([GLA([0, 1]), DeltaNet([1])]), "layer 1 has a mixer already")
    refused(lambda: made().mix([Agent()]), "for encoders only")
    config = {"model_type": "gemma2", **SIZES, "attn_logit_softcapping": 50.0}
    capped = CausalLM(config=config, attention="eager")
    capped.mix([LoLCATs([1])])
    refused(lambda: lessons(capped).__enter__(), "layer 1 capped its logits at 50")
    refused(lambda: made().mix([GLA([4])]), "not some of 0 to 3")
    refused(lambda: made().mix([LoLCATs([1], feature=9)]), "feature 9 .* 1 to 8")
    refused(lambda: made(operators=[{"name": "exact"}]).mix([GLA([0])]), "have an operator already")
    refused(lambda: tiny(mixers=[GLA("all")], compute=SAISA()), "SAISA wants softmax attention")
    model = tiny(mixers=[GLA([0])], reducers=[FastV(ratio=0.5, layer=1)])
    refused(lambda: model.lm.recording(0).__enter__(), "layer 0 has no softmax attention")
