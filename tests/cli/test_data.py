"""`gnomon data` as a user runs it: shards that others read, a sheet of them, a tokenizer."""

import webdataset
from PIL import Image
from transformers import AutoTokenizer

from gnomon.cli.main import main


def test_make_then_show(tmp_path, capsys):
    out, sheet = tmp_path / "shards", tmp_path / "sheet.png"
    drawing = ["--tasks", "angle", "--levels", "1", "--size", "112x160"]
    assert main(["data", "make", "diagrams", "--count", "5", "--shard-size", "2", "--out", str(out), *drawing]) == 0
    assert "5 samples in 3 shards" in capsys.readouterr().out
    # webdataset's own reader, not ours
    found = list(webdataset.WebDataset([str(path) for path in sorted(out.glob("*.tar"))], shardshuffle=False))
    assert len(found) == 5
    assert main(["data", "show", str(out), "--count", "4", "--out", str(sheet)]) == 0
    assert Image.open(sheet).size[0] > 400


def test_tokenizer(tmp_path):
    out = tmp_path / "tokenizer"
    assert main(["data", "tokenizer", "diagrams", "--count", "20", "--vocabulary", "400", "--out", str(out)]) == 0
    tokenizer = AutoTokenizer.from_pretrained(out)
    assert tokenizer.decode(tokenizer("Is angle ABC acute?")["input_ids"]) == "Is angle ABC acute?"


def test_a_wrong_size_draws_nothing(tmp_path, capsys):
    out = tmp_path / "shards"
    assert main(["data", "make", "diagrams", "--count", "5", "--size", "50", "--out", str(out)]) == 2
    assert "at least 112 pixels" in capsys.readouterr().err and not out.exists()
