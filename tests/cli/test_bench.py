"""`gnomon bench`: from the command line to files, on a model made of nothing but shapes."""

import argparse
import json

import pytest
import yaml

from gnomon.cli.bench import BENCHES, _spread
from gnomon.cli.main import main

PRESET = {
    "encoder": {
        "class_path": "gnomon.vlm.encoders.timm.Timm",
        "init_args": {
            "name": "vit_tiny_patch16_224",
            "args": {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 1, "num_heads": 2},
        },
    },
    "connector": {"class_path": "gnomon.vlm.connectors.linear.Linear"},
    "lm": {
        "class_path": "gnomon.vlm.hf.CausalLM",
        "init_args": {
            "config": {
                "model_type": "llama", "vocab_size": 40, "hidden_size": 32, "intermediate_size": 48,
                "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2,
            }
        },
    },
    "image_size": [32, 32],
}  # fmt: skip


@pytest.fixture
def preset(tmp_path) -> str:
    file = tmp_path / "tiny.yaml"
    file.write_text(yaml.safe_dump({"model": PRESET}))
    return str(file)


def test_decode(preset, tmp_path, capsys):
    out = tmp_path / "out"
    argv = ["bench", "decode", preset, "--reduce", "random", "--reduce", "fastv:0.5,layer=1", "--kept", "0.5", "0.25"]
    shape = [
        "--visual",
        "20",
        "40",
        "--text",
        "6",
        "--new",
        "2",
        "--repeats",
        "1",
        "--device",
        "cpu",
        "--out",
        str(out),
    ]
    assert main(argv + shape) == 0
    printed = capsys.readouterr().out
    assert printed.count("| unreduced |") == 2 and printed.count("| random:0.25 |") == 2
    data = json.loads((out / "decode.json").read_text())
    assert data["threads"] >= 1 and data["dtype"] == "float32" and data["torch"]
    assert [(r["setting"], r["visual"]) for r in data["results"][:4]] == [
        ("unreduced", 20), ("fastv:0.5,layer=1", 20), ("random:0.5", 20), ("random:0.25", 20),
    ]  # fmt: skip
    assert data["results"][3]["lengths"] == [11] * 4 and data["results"][5]["lengths"] == [46, 26, 26, 26]
    assert "unreduced" in (out / "decode.md").read_text()


def test_shares_are_for_those_that_name_none():
    assert _spread(["a", "b:0.3", "c,layer=2"], [0.5, 0.25]) == [
        "b:0.3", "a:0.5", "c:0.5,layer=2", "a:0.25", "c:0.25,layer=2",
    ]  # fmt: skip
    assert _spread(["a", "b:0.3"], []) == ["b:0.3", "a"]
    assert _spread(["a+b:0.3+c,layer=2"], [0.5]) == ["a:0.5+b:0.3+c:0.5,layer=2"]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--reduce", "fastw:0.5"], "did you mean 'fastv'"),
        (["--reduce", "fastv:2"], "(0, 1]"),
        (["--reduce", "pyramiddrop"], "the language model has 4 layers"),
        (["--reduce", "peap_fast:0.5"], "inside the encoder"),
        (["--kept", "0.5"], "--kept 0.5: no --reduce is without a ratio of its own; add one or leave --kept out"),
        (["--reduce", "fastv:0.5,layer=1", "--kept", "0.5", "0.25"], "--kept 0.5 0.25: no --reduce is without"),
    ],
)
def test_a_mistake_is_one_line(preset, options, told, capsys):
    assert main(["bench", "decode", preset, "--device", "cpu", *options]) == 2
    printed = capsys.readouterr().err
    assert told in printed and printed.strip().count("\n") == 0


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "describes no model; write its parts under `model:`"),
        ("encoder: {}", "describes no model; write its parts under `model:`"),
        ("model: 3", "describes no model; write its parts under `model:`"),
        ("model: [1", "is no YAML"),
    ],
)
def test_a_preset_without_a_model(text, told, tmp_path, capsys):
    file = tmp_path / "empty.yaml"
    file.write_text(text)
    assert main(["bench", "decode", str(file), "--device", "cpu"]) == 2
    printed = capsys.readouterr().err
    assert f"{file} {told}" in printed and printed.count("\n") == 1


def test_a_preset_that_is_not_there(capsys):
    assert main(["bench", "decode", "no/such.yaml"]) == 2
    assert "no/such.yaml is not a file" in capsys.readouterr().err


def test_a_place_that_is_a_file_is_told_before_anything_is_measured(preset, tmp_path, capsys):
    place = tmp_path / "afile"
    place.write_text("kept")
    assert main(["bench", "decode", preset, "--device", "cpu", "--out", str(place)]) == 2
    printed = capsys.readouterr()
    assert f"{place}/decode.json cannot be written (File exists); choose another --out" in printed.err
    assert printed.err.count("\n") == 1 and not printed.out and place.read_text() == "kept"


@pytest.mark.parametrize("bench", ["decode", "kernels"])
def test_every_option_says_what_it_is(bench, capsys, monkeypatch):
    made = []
    add = argparse.ArgumentParser.add_argument
    monkeypatch.setattr(argparse.ArgumentParser, "add_argument", lambda *a, **k: made.append(k) or add(*a, **k))
    with pytest.raises(SystemExit):
        main(["bench", bench, "--help"])
    # the description lists the benches
    untold = [option for option in made if "help" not in option and option.get("choices") != list(BENCHES)]
    assert len(made) > 10 and untold == [] and "--dtype" in capsys.readouterr().out
