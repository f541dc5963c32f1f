"""A model directory: what goes in comes out, a failed write harms nothing, and damage is named."""

from __future__ import annotations

import json
import resource
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from gnomon.vlm import save as module
from gnomon.vlm.connectors.pixel_shuffle import PixelShuffle
from gnomon.vlm.encoders.timm import Timm
from gnomon.vlm.layout import Batch, TokenLayout
from gnomon.vlm.model import VLM
from gnomon.vlm.save import from_config, load, resolve, save


def logits(model: VLM) -> torch.Tensor:
    """Of one image between two words."""
    h, w = model.image.grid(*model.image.size)
    kind = torch.tensor([[1] + [2] * h * w + [1]])
    layout = TokenLayout.text(1, h * w + 2)
    layout.kind, layout.image = kind, torch.where(kind == 2, 0, -1)
    torch.manual_seed(5)
    pixels = [torch.randint(0, 256, (3, *model.image.size), dtype=torch.uint8)]
    ids = torch.randint(3, 38, kind.shape)
    with torch.no_grad():
        return model(Batch(ids=ids, labels=ids, layout=layout, pixels=pixels)).logits


def edit(path: Path, change) -> None:
    config = json.loads((path / "config.json").read_text())
    change(config)
    (path / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"lm": {"tie_word_embeddings": False}},
        {"connector": PixelShuffle(2, depth=2), "image_size": (32, 48), "image_fit": "pad", "template": "vicuna"},
        {"encoder": Timm("tf_efficientnet_lite0", layer=-2)},
    ],
    ids=["tied", "untied", "shuffle", "batch norm"],
)
def test_round_trip(tmp_path: Path, tiny, options):
    model = tiny(**options)
    save(model, tmp_path / "m", meta={"from": "a test"})
    again = load(tmp_path / "m")
    assert torch.equal(logits(again), logits(model))
    assert again.image == model.image and again.template == model.template
    assert again.tokenizer.get_vocab() == model.tokenizer.get_vocab()
    assert not again.training
    assert json.loads((tmp_path / "m/config.json").read_text())["meta"] == {"from": "a test"}
    save(again, tmp_path / "n", meta={"from": "a test"})
    for name in ("config.json", "model.safetensors", "tokenizer/tokenizer.json"):
        assert (tmp_path / "m" / name).read_bytes() == (tmp_path / "n" / name).read_bytes()


def test_tied_weights_are_stored_once_and_stay_tied(tmp_path: Path, tiny):
    stored = load_file(save(tiny(), tmp_path / "m") / "model.safetensors")
    assert "lm.model.model.embed_tokens.weight" in stored and "lm.model.lm_head.weight" not in stored
    lm = load(tmp_path / "m").lm.model
    assert lm.lm_head.weight is lm.model.embed_tokens.weight


def test_dtypes_are_kept_or_replaced(tmp_path: Path, tiny):
    model = tiny()
    model.connector.to(torch.bfloat16)
    save(model, tmp_path / "m")
    again = load(tmp_path / "m")
    kept = {name: p.dtype for name, p in again.named_parameters()}
    assert kept == {name: p.dtype for name, p in model.named_parameters()}
    assert set(kept.values()) == {torch.float32, torch.bfloat16}
    half = load(tmp_path / "m", dtype="bfloat16")
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}
    # the frequencies of rotary positions, or the pixels' mean, would lose their meaning
    assert {name for name, b in half.named_buffers() if b.is_floating_point() and b.dtype != torch.float32} == set()
    with pytest.raises(ValueError, match="dtype 'bf16' is unknown"):
        load(tmp_path / "m", dtype="bf16")


def test_large_models_are_sharded(tmp_path: Path, tiny, monkeypatch):
    model = tiny()
    whole = module.save_torch_state_dict
    monkeypatch.setattr(module, "save_torch_state_dict", lambda *args: whole(*args, max_shard_size="20KB"))
    save(model, tmp_path / "m")
    assert len(list((tmp_path / "m").glob("model-*-of-*.safetensors"))) > 2
    assert torch.equal(logits(load(tmp_path / "m")), logits(model))
    next((tmp_path / "m").glob("model-00002-*")).unlink()
    with pytest.raises(ValueError, match="lacks model-00002"):
        load(tmp_path / "m")


def test_gathered_weights_may_be_handed_in(tmp_path: Path, tiny):
    model = tiny()
    # a gathered state dict holds tied weights twice, as separate tensors
    state = {name: tensor.clone() + 1 for name, tensor in model.state_dict().items()}
    save(model, tmp_path / "m", state=state)
    again = load(tmp_path / "m")
    assert torch.equal(again.connector.layers[0].bias, model.connector.layers[0].bias + 1)
    assert again.lm.model.lm_head.weight is again.lm.model.model.embed_tokens.weight


def test_a_saved_model_replaces_the_old_one(tmp_path: Path, tiny):
    save(tiny(), tmp_path / "m")
    (tmp_path / "m/left.over").write_text("")
    second = tiny(seed=1)
    save(second, tmp_path / "m")
    assert torch.equal(logits(load(tmp_path / "m")), logits(second))
    assert [p.name for p in tmp_path.iterdir()] == ["m"] and not (tmp_path / "m/left.over").exists()


def test_what_is_not_a_model_is_never_replaced(tmp_path: Path, tiny):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ValueError, match="not of the kind"):
        save(tiny(), tmp_path)
    with pytest.raises(ValueError, match="not of the kind"):
        save(tiny(), tmp_path / "thesis.tex")
    assert (tmp_path / "thesis.tex").read_text() == "years of work"
    (tmp_path / "empty").mkdir()
    save(tiny(), tmp_path / "empty")


def test_a_full_disk_leaves_the_old_model(tmp_path: Path, tiny):
    """A real limit on the size of files stands in for the end of the disk."""
    model = tiny()
    save(model, tmp_path / "m")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        with pytest.raises(OSError):
            save(tiny(seed=1), tmp_path / "m")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [p.name for p in tmp_path.iterdir()] == ["m"]
    assert torch.equal(logits(load(tmp_path / "m")), logits(model))


def test_loading_runs_no_code_from_the_directory(tmp_path: Path, tiny):
    """A pickle beside the weights, or in their place, is not opened."""
    save(tiny(), tmp_path / "m")
    program = f"open({str(tmp_path / 'ran')!r}, 'w')"
    evil = b"cbuiltins\nexec\n(S" + repr(program).encode() + b"\ntR."
    (tmp_path / "m/pytorch_model.bin").write_bytes(evil)
    load(tmp_path / "m")
    (tmp_path / "m/model.safetensors").write_bytes(evil)
    with pytest.raises(ValueError, match=r"model.safetensors is damaged"):
        load(tmp_path / "m")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: [s.pop(n) for n in sorted(s)[:5]], r"5 missing \(connector\.layers\.0\.bias, .*, \.\.\.\); config"),
        (lambda s: s.update(surplus=torch.zeros(1)), r"1 unexpected \(surplus\)"),
        (lambda s: s.update({"connector.layers.0.bias": torch.zeros(3)}), r"shape \(3,\), the model wants \(32,\)"),
    ],
)
def test_weights_that_do_not_fit(tmp_path: Path, tiny, change, words):
    save(tiny(), tmp_path / "m")
    state = load_file(tmp_path / "m/model.safetensors")
    change(state)
    save_file(state, tmp_path / "m/model.safetensors")
    with pytest.raises(ValueError, match=words) as caught:
        load(tmp_path / "m")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda c: c.update(format=99), "has format 99, this gnomon reads up to 1; upgrade"),
        (lambda c: c.pop("gnomon"), "is not a gnomon model"),
        (lambda c: c["model"]["encoder"].update(class_path="os.system"), "'os.system' is not a Encoder"),
        (lambda c: c["model"]["connector"].update(class_path="no.such.Thing"), "cannot be imported"),
        (lambda c: c["model"].update(image_sise=[1, 1]), "no option 'image_sise'; did you mean image_size"),
        (lambda c: c["model"].pop("lm"), "the model's lm needs a class_path"),
    ],
)
def test_configs_that_do_not_fit(tmp_path: Path, tiny, change, words):
    save(tiny(), tmp_path / "m")
    edit(tmp_path / "m", change)
    with pytest.raises(ValueError, match=words) as caught:
        load(tmp_path / "m")
    assert "\n" not in str(caught.value)


def test_places_that_are_no_model(tmp_path: Path):
    (tmp_path / "file").write_text("")
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken/config.json").write_text("{")
    (tmp_path / "run/model").mkdir(parents=True)
    (tmp_path / "run/model/config.json").write_text("{}")
    for place, words in (
        (tmp_path / "file", "is a file"),
        (tmp_path / "empty", "has no config.json"),
        (tmp_path / "broken", "is not JSON"),
        (tmp_path / "run", "has no config.json; the model of this run is .*run/model"),
        (tmp_path / "nowhere", "there is no model directory .*nowhere; models in the package:"),
    ):
        with pytest.raises(ValueError, match=words):
            load(place)


def test_a_model_of_the_package_is_found_by_name(tmp_path: Path, monkeypatch):
    (tmp_path / "checkpoints/first").mkdir(parents=True)
    monkeypatch.setattr(module.shipped, "place", lambda name: tmp_path / name)
    assert resolve("first") == tmp_path / "checkpoints/first"
    with pytest.raises(ValueError, match="models in the package: first"):
        resolve("second")
    with pytest.raises(ValueError, match="there is no model directory"):
        resolve("../checkpoints/first")


def test_exponents_in_yaml_are_numbers(tmp_path: Path, tiny):
    text = json.dumps({"model": module.describe(tiny())})
    assert '"rms_norm_eps": 1e-06' in text
    (tmp_path / "model.yaml").write_text(text)
    assert from_config(tmp_path / "model.yaml").lm.model.config.rms_norm_eps == 1e-6


def test_from_config_equals_the_constructor(tiny):
    model = tiny(connector=PixelShuffle(2))
    config = module.describe(model)
    assert module.describe(from_config(config)) == config
