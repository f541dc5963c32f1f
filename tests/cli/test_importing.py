"""`gnomon import` from a checkpoint to an answer, and its mistakes in one line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gnomon.cli.importing import _difference
from gnomon.cli.main import main
from gnomon.vlm.importing.checkpoint import convert, read
from gnomon.vlm.save import load, read_config

TEMPLATES = {"llava": "llava", "next-mistral": "mistral", "qwen": "qwen2.5_vl"}


@pytest.mark.parametrize("name", TEMPLATES)
def test_from_a_checkpoint_to_an_answer(name: str, checkpoint, tmp_path: Path, capsys):
    out = tmp_path / "model"
    assert main(["import", str(checkpoint(name)), "--out", str(out)]) == 0
    # libraries may speak before
    said = capsys.readouterr().out.splitlines()[-2:]
    assert said[0] == f"wrote {out}; chat template {TEMPLATES[name]}"
    assert float(said[1].rsplit(" ", 1)[1]) < 1e-4
    assert read_config(out)["meta"]["imported"] == str(checkpoint(name))
    # nothing of the model is left to look up where it came from
    assert str(checkpoint(name)) not in json.dumps(read_config(out)["model"])
    picture = tmp_path / "picture.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 60, 3), dtype=np.uint8)).save(picture)
    ask = ["ask", str(out), "Why?", "--image", str(picture), "--max-new-tokens", "3", "--device", "cpu"]
    assert main(ask) == 0
    assert "cut after 3 tokens" in capsys.readouterr().err


def test_what_is_there_is_kept_unless_told_otherwise(checkpoint, tmp_path: Path, capsys):
    out = tmp_path / "model"
    assert main(["import", str(checkpoint("llava")), "--out", str(out), "--no-check", "--template", "vicuna"]) == 0
    assert load(out).template == "vicuna"
    assert main(["import", str(checkpoint("llava")), "--out", str(out)]) == 2
    assert "exists; choose another --out or add --overwrite" in capsys.readouterr().err
    assert main(["import", str(checkpoint("llava")), "--out", str(out), "--overwrite"]) == 0
    assert load(out).template == "llava"


def changed(source: Path, target: Path, chat: str | None) -> str:
    """The checkpoint with another chat template, or none."""
    shutil.copytree(source, target)
    for file in target.glob("chat_template*"):
        file.unlink()
    if chat is not None:
        (target / "chat_template.jinja").write_text(chat)
    return str(target)


@pytest.mark.parametrize(
    ("chat", "says"),
    [
        (None, "has no chat template; name one of"),
        ("Q: {{ messages[0]['content'][-1]['text'] }}", "no template renders a question as"),
    ],
)
def test_prompts_that_nobody_knows(chat, says, checkpoint, tmp_path: Path, capsys):
    path = changed(checkpoint("llava"), tmp_path / "changed", chat)
    assert main(["import", path, "--out", str(tmp_path / "out")]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert says in lines[-1] and "--template" in lines[-1]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["nowhere", "--out", "x"], "nowhere cannot be imported"),
        (["nowhere", "--out", "x", "--template", "klingon"], "chat template 'klingon' is unknown"),
    ],
)
def test_mistakes_have_one_line(words, says, tmp_path: Path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["import", *words]) == 2
    assert says in capsys.readouterr().err.strip().splitlines()[-1]


def test_the_check_can_fail(checkpoint, tmp_path: Path):
    theirs = read(str(checkpoint("next")))
    out = convert(theirs, tmp_path / "model", template="llava")
    assert _difference(theirs, out) < 1e-4
    theirs.model.model.image_newline.data += 1
    with pytest.raises(ValueError, match="apart from the checkpoint's logits"):
        _difference(theirs, out)
    theirs.processor.tokenizer.add_tokens(["What is"])
    with pytest.raises(ValueError, match="reads a prompt as other tokens"):
        _difference(theirs, out)
