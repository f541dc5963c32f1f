"""Mixers in the layers of transformers models: where they go, what they take over, what is refused."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from gnomon.vlm.compute.saisa import SAISA
from gnomon.vlm.decoder import MixerCache
from gnomon.vlm.hf import CausalLM
from gnomon.vlm.layout import TokenLayout
from gnomon.vlm.mixers.agent import Agent
from gnomon.vlm.mixers.base import Mixer, lessons
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


@torch.no_grad()
def test_attention_transfer_reads_as_the_model_did_before():
    plain, lm = made(), made()
    lm.mix([Hedgehog([0, 2])])
    with lessons(lm) as errors:
        found = read(lm)
    torch.testing.assert_close(found, read(plain), atol=1e-5, rtol=1e-4)
    assert len(errors) == 2 and all(float(error) > 0 for error in errors)
    assert float((read(lm) - found).abs().max()) > 1e-4


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


def test_what_cannot_be_is_refused(tiny):
    refused(lambda: made().mix([GLA([0, 1]), DeltaNet([1])]), "layer 1 has a mixer already")
    refused(lambda: made().mix([Agent()]), "for encoders only")
    refused(lambda: made().mix([GLA([4])]), "not some of 0 to 3")
    refused(lambda: made(operators=[{"name": "exact"}]).mix([GLA([0])]), "have an operator already")
    refused(lambda: tiny(mixers=[GLA("all")], compute=SAISA()), "SAISA wants softmax attention")
    model = tiny(mixers=[GLA([0])], reducers=[FastV(ratio=0.5, layer=1)])
    refused(lambda: model.lm.recording(0).__enter__(), "layer 0 has no softmax attention")
