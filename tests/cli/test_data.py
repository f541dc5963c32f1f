"""`gnomon data` as a user runs it: shards that others read, a sheet of them, a tokenizer."""

import pytest
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


def test_scenes_are_shown_with_their_depth_and_plan(tmp_path, capsys):
    sheet, drawing = (
        tmp_path / "sheet.png",
        ["--count", "2", "--views", "2", "--size", "48x64", "--tasks", "nearer,count"],
    )
    assert main(["data", "show", "scenes", "--out", str(sheet), *drawing]) == 0
    assert "2 samples" in capsys.readouterr().out
    width, height = Image.open(sheet).size
    # a plan as high as a cell is wide, and two rows of pictures
    assert width == 2 * 360 + 3 * 12 and height > 360 + 2 * 134


def test_scenes_are_made(tmp_path):
    out = tmp_path / "shards"
    assert main(["data", "make", "scenes", "--count", "3", "--size", "48", "--out", str(out), "--shown", "all"]) == 0
    found = list(webdataset.WebDataset(str(out / "000000.tar"), shardshuffle=False))
    assert len(found) == 3 and all("0.png" in item and "1.png" in item for item in found)


def test_a_tokenizer_of_scenes(tmp_path):
    out = tmp_path / "tokenizer"
    assert main(["data", "tokenizer", "scenes", "--count", "24", "--vocabulary", "400", "--out", str(out)]) == 0
    tokenizer = AutoTokenizer.from_pretrained(out)
    said = "Which is nearer to the camera of the first view, the red ball or the blue box?"
    assert tokenizer.decode(tokenizer(said)["input_ids"]) == said


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["scenes", "--levels", "1"], "--levels says nothing about scenes; leave it out"),
        (["diagrams", "--views", "2"], "--views says nothing about diagrams; leave it out"),
        (["diagrams", "--images", "im"], "--images says nothing about diagrams; leave it out"),
        (["rows.jsonl", "--tasks", "nonsense"], "--tasks says nothing about rows.jsonl; leave it out"),
        (["rows.jsonl", "--levels", "9"], "--levels says nothing about rows.jsonl; leave it out"),
        (["rows.jsonl", "--seed", "7", "--images", "im"], "--seed says nothing about rows.jsonl; leave it out"),
        (["shards", "--images", "im"], "--images says nothing about shards; leave it out"),
        (["diagrams", "--columns", "0"], "--columns 0 is too small; use 1 or more"),
        (["scenes", "--prompt", "official"], "choose from question, words"),
        (["scenes", "--views", "few"], "neither N nor FEWEST-MOST; try 3 or 2-4"),
        (["scenes", "--views", "1", "--tasks", "count"], "'count' needs 2 views"),
    ],
)
def test_options_that_do_not_fit_are_told(arguments, message, tmp_path, capsys):
    assert code(["data", "show", *arguments, "--out", str(tmp_path / "sheet.png")]) == 2
    assert message in capsys.readouterr().err and not (tmp_path / "sheet.png").exists()


def code(arguments):
    """argparse leaves by SystemExit, gnomon by returning."""
    try:
        return main(arguments)
    except SystemExit as leaving:
        return leaving.code
