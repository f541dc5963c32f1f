"""The three commands as a user calls them: what is printed, where, and with which exit code."""

import json
import subprocess
import sys

import pytest
from PIL import Image

from gnomon.cli.main import main
from gnomon.eval import evaluate as work
from gnomon.eval import runner
from gnomon.eval.record import read_items
from gnomon.vlm.fusion.weighted import Weighted
from gnomon.vlm.geometry.tinygeo import TinyGeo
from gnomon.vlm.save import save

FAST = ["--device", "cpu", "--tasks", "angle,count", "--limit", "2"]


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def complaint(capsys, *argv):
    """The one line of a user's mistake."""
    assert main(list(argv)) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("gnomon: ") and err.count("\n") == 1
    return err


def test_evaluate_prints_a_table_and_keeps_its_place(model_dir, capsys, tmp_path):
    assert main(["evaluate", str(model_dir), *FAST]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    for text in (
        "standin/geoperception/angle",
        "95 % interval",
        "majority",
        "chance",
        "mean of 2",
        "float32 on cpu",
        "items/s",
    ):
        assert text in out
    # the default place depends on model and settings alone: the second time there is nothing to do
    (folder,) = (tmp_path / "runs" / "eval").iterdir()
    before = (folder / "items.jsonl").read_bytes()
    assert main(["evaluate", str(model_dir), *FAST, "--batch-size", "1", "--json"]) == 0
    table = json.loads(capsys.readouterr().out)
    assert [row["n"] for row in table["rows"]] == [2, 2, 4]
    assert (folder / "items.jsonl").read_bytes() == before and len(list(folder.parent.iterdir())) == 1
    assert json.loads((folder / "summary.json").read_text())["rows"] == table["rows"]
    assert main(["evaluate", str(model_dir), *FAST, "--seed", "1"]) == 0
    assert len(list(folder.parent.iterdir())) == 2


def test_figures_are_drawn_at_the_size_the_model_takes(model_dir, capsys, tmp_path):
    main(["evaluate", str(model_dir), *FAST, "--out", "a"])
    assert "figures of 112x112" in capsys.readouterr().out
    main(["evaluate", str(model_dir), *FAST, "--out", "b", "--size", "128x160"])
    assert "figures of 128x160" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--benchmarks", "diagram"], "benchmark 'diagram' is unknown; did you mean 'diagrams'?"),
        (["--tasks", "angel"], "task 'angel' is unknown; did you mean 'angle'?"),
        (["--levels", "7"], "levels"),
        (["--device", "cuda"], "use --device cpu"),
        (["--device", "gpu"], "device 'gpu'"),
    ],
)
def test_mistakes_are_one_line(model_dir, capsys, monkeypatch, options, message):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert message in complaint(capsys, "evaluate", str(model_dir), *options)


def test_no_such_model(capsys, tmp_path):
    assert "nothing" in complaint(capsys, "evaluate", "nothing")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text("{")
    assert "config.json" in complaint(capsys, "evaluate", "broken")


def test_another_setting_in_the_same_directory(model_dir, capsys):
    main(["evaluate", str(model_dir), *FAST, "--out", "a"])
    capsys.readouterr()
    err = complaint(capsys, "evaluate", str(model_dir), *FAST, "--out", "a", "--dtype", "bfloat16")
    assert "dtype float32, now bfloat16" in err
    assert main(["evaluate", str(model_dir), *FAST, "--out", "a", "--dtype", "bfloat16", "--fresh"]) == 0


@pytest.mark.parametrize(
    "option",
    [
        ["--limit", "0"],
        ["--levels", "x"],
        ["--tasks", ","],
        ["--size", "big"],
        ["--prompt", "own"],
        ["--views", "2-x"],
        ["--shown", "last"],
        ["--focal", "1to2"],
    ],
)
def test_options_are_checked_before_anything_is_loaded(capsys, option):
    with pytest.raises(SystemExit) as end:
        main(["evaluate", "nothing", *option])
    assert end.value.code == 2 and option[0] in capsys.readouterr().err


def test_ctrl_c_keeps_what_is_done_and_says_how_to_go_on(model_dir, capsys, monkeypatch, tmp_path):
    answerer = runner.answerer

    def impatient(model, processor, variants, others):
        answer, calls = answerer(model, processor, variants, others), []

        def once(examples, most):
            calls.append(1)
            if len(calls) > 1:
                raise KeyboardInterrupt
            return answer(examples, most)

        return once

    monkeypatch.setattr(work.runner, "answerer", impatient)
    command = ["evaluate", str(model_dir), *FAST, "--batch-size", "3", "--out", "a"]
    assert main(command) == 130
    assert "the same command" in capsys.readouterr().err and len(read_items(tmp_path / "a")) == 3
    monkeypatch.undo()
    assert main([*command[:-1], str(tmp_path / "a")]) == 0 and len(read_items(tmp_path / "a")) == 4


def test_ask(model_dir, capsys, tmp_path, monkeypatch):
    Image.new("RGB", (50, 40), "red").save("x.png")
    command = ["ask", str(model_dir), "--image", "x.png", "--device", "cpu", "--max-new-tokens", "5"]
    assert main([*command, "What is it?"]) == 0
    said, err = capsys.readouterr()
    assert said.endswith("\n") and ("cut after 5 tokens" in err or err == "")
    monkeypatch.setattr("sys.stdin", type("Stdin", (), {"read": staticmethod(lambda: "What is it?\n")}))
    assert main([*command, "-"]) == 0
    assert capsys.readouterr().out == said


def test_ask_names_a_bad_image_and_an_empty_question(model_dir, capsys, tmp_path):
    (tmp_path / "x.png").write_bytes(b"GIF89a")
    assert "x.png" in complaint(capsys, "ask", str(model_dir), "What?", "--image", "x.png")
    assert "no such file" in complaint(capsys, "ask", str(model_dir), "What?", "--image", "y.png")
    assert "question is empty" in complaint(capsys, "ask", str(model_dir), " ")


def test_ask_writes_a_page_of_the_views(surveying, capsys, tmp_path):
    save(surveying(TinyGeo(), Weighted(align="pool")).model, tmp_path / "m")
    (tmp_path / "v").mkdir()
    for k in range(3):
        Image.effect_noise((80, 60), 90 + k).convert("RGB").save(tmp_path / "v" / f"{k}.png")
    command = ["ask", "m", "How far?", "--images", "v", "--device", "cpu", "--max-new-tokens", "2"]
    assert main([*command, "--page", "deep/x.html"]) == 0
    assert "wrote deep/x.html" in capsys.readouterr().err
    page = (tmp_path / "deep" / "x.html").read_text()
    for text in ("How far?", "view 2", "predicted depth", "up to scale", "predicted points from above", "mean 0.500"):
        assert text in page
    assert "true depth of view" not in page


def test_ask_shows_all_views_to_the_language_model(surveying, capsys, tmp_path):
    save(surveying(TinyGeo(), Weighted(align="pool")).model, tmp_path / "m")
    (tmp_path / "v").mkdir()
    for k in range(2):
        Image.effect_noise((80, 60), 90 + k).convert("RGB").save(tmp_path / "v" / f"{k}.png")
    command = ["ask", "m", "How far?", "--images", "v", "--device", "cpu", "--max-new-tokens", "2", "--page"]
    for shown, gates in (("first", 1), ("all", 2)):
        assert main([*command, f"{shown}.html", "--shown", shown]) == 0
        # a gate for each view that is a picture of the question
        assert (tmp_path / f"{shown}.html").read_text().count("mean 0.500") == gates
    capsys.readouterr()
    assert "there are none; give them with --images" in complaint(capsys, "ask", "m", "What?", "--shown", "all")


def test_options_of_scenes(model_dir, capsys, tmp_path):
    scenes = ["evaluate", str(model_dir), "--benchmarks", "scenes", "--tasks", "nearer", "--limit", "2", "--json"]
    ranges = ["--objects", "6-7", "--distances", "9-14", "--focal", "1.6-2", "--baseline", "1.5-3"]
    assert main([*scenes, "--views", "3", "--shown", "all", *ranges, "--out", "a"]) == 0
    told = json.loads(capsys.readouterr().out)["protocols"]["scenes"]
    assert "the model sees all), objects 6 to 7, distances 9 to 14, focal 1.6 to 2, baseline 1.5 to 3" in told
    assert [len(record.image_sha256) for record in read_items(tmp_path / "a")] == [3, 3]
    assert "has no option --views; leave it out" in complaint(capsys, "evaluate", str(model_dir), "--views", "3")
    assert "views is (2, 257), but must be" in complaint(capsys, *scenes, "--views", "2-257")


def test_ask_refuses_a_page_of_nothing(model_dir, capsys, tmp_path):
    (tmp_path / "v").mkdir()
    for k in range(2):
        Image.new("RGB", (80, 60)).save(tmp_path / "v" / f"{k}.png")
    ask = ["ask", str(model_dir), "What?", "--page"]
    assert "give a folder of them with --images" in complaint(capsys, *ask, "x.html")
    assert "has none; leave it out" in complaint(capsys, *ask, "x.html", "--images", "v")
    assert "v cannot be written (Is a directory); choose another --page" in complaint(
        capsys, *ask, "v", "--images", "v"
    )


@pytest.mark.parametrize("command", [["evaluate"], ["calibrate", "--share", "0.1"], ["report"]], ids=lambda c: c[0])
def test_a_place_that_cannot_be_written_is_told_before_any_work(model_dir, capsys, tmp_path, command):
    (tmp_path / "file").touch()
    told = complaint(capsys, *command, str(model_dir), "--out", "file/x")
    assert "file/x" in told and "cannot be written" in told and "choose another --out" in told


def test_report(model_dir, capsys, tmp_path):
    main(["evaluate", str(model_dir), *FAST, "--out", "a"])
    capsys.readouterr()
    assert main(["report", "a", "--out", "page.html", "--examples", "3"]) == 0
    assert capsys.readouterr().out == "wrote page.html\n"
    assert (tmp_path / "page.html").read_text().count("<article") == 3
    assert "is not a directory" in complaint(capsys, "report", "none")


def test_help_imports_no_torch():
    code = (
        "import sys, contextlib, io\n"
        "from gnomon.eval import cli\n"
        "for command in (cli.evaluate, cli.ask, cli.report):\n"
        "    with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()) as out:\n"
        "        command(['--help'])\n"
        "    assert 'usage: gnomon' in out.getvalue()\n"
        "assert 'torch' not in sys.modules and 'transformers' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
