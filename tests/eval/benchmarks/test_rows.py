"""A user's own rows: scored by hand-computed rules, refused before any work where they cannot be scored."""

import json

import numpy as np
import pytest
from PIL import Image

from gnomon.cli.main import main
from gnomon.eval.benchmark import Benchmark, Item, Scored
from gnomon.eval.benchmarks.rows import Rows
from gnomon.eval.evaluate import evaluate
from gnomon.eval.names import reducers
from gnomon.eval.record import read_items
from gnomon.eval.report import page
from gnomon.eval.session import open_model
from gnomon.vlm.fusion.add import Add
from gnomon.vlm.geometry.tinygeo import TinyGeo
from gnomon.vlm.part import build
from gnomon.vlm.save import save


def row(question, answer, **rest):
    return {"conversations": [{"from": "human", "value": question}, {"from": "gpt", "value": answer}], **rest}


@pytest.fixture
def written(tmp_path):
    """Writes rows beside four pictures of noise and names the file."""
    for k in range(4):
        Image.effect_noise((64, 48), 90 + k).convert("RGB").save(tmp_path / f"{k}.png")

    def write(*rows):
        path = tmp_path / "mine.jsonl"
        path.write_text("".join(json.dumps(one) + "\n" for one in rows))
        return str(path)

    return write


SCENES = [
    row("<image>\nHow far is the lamp?", "2.5", image=["0.png", "1.png"], task="distance"),
    row("<image>\nWhich is nearer? A. lamp B. bed", "B", image=["1.png", "2.png"], task="nearer"),
    row("<image>\nWhat stands left of it?", "the red chair", image=["2.png", "3.png"], task="which"),
    row("<image>\nHow far is the bed?", "4", image=["3.png", "0.png"], task="distance"),
]


def values(benchmark, *said):
    items = [benchmark.item(sample) for sample in benchmark.examples()]
    # what a record keeps is enough to score
    return [benchmark.score(raw, Item(**json.loads(json.dumps(vars(item))))).value for item, raw in zip(items, said)]


def test_each_answer_is_scored_as_what_it_is(written):
    benchmark = Rows(rows=written(*SCENES, row("Is it so?", "0"), row("Which?", "A")), scenes=True)
    assert values(benchmark, "2.5", "B", "The red chair.", "4 m", "0", "(A)") == [1] * 6
    # 0.76 and 0.775 of the truth: of the thresholds 0.50, 0.55, ..., 0.95 the first six are met
    assert values(benchmark, "3.1", "A", "chair", "4.9", "0.1", "a lamp or b") == [0.6, 0, 0, 0.6, 0, 0]
    assert values(benchmark, *[""] * 6) == [0] * 6


def test_words_can_be_asked_of_all(written):
    path = written(row("How many?", "3"), row("Which?", "A"))
    assert values(Rows(rows=path, scoring="words"), "4", "A.") == [0, 1]
    assert values(Rows(rows=path), "4", "A.") == [0.4, 1]


def test_rows_of_the_table_are_the_tasks_of_the_file(written):
    benchmark = Rows(rows=written(*SCENES, row("And?", "yes")), scenes=True)
    items = [benchmark.item(sample) for sample in benchmark.examples()]
    scored = [Scored(item, benchmark.score(item.target, item), item.id) for item in items]
    table = {found.name: (found.n, found.score) for found in benchmark.summary(scored, resamples=100)}
    assert table == {
        "rows/distance": (2, 1),
        "rows/nearer": (1, 1),
        "rows/which": (1, 1),
        "rows/mine": (1, 1),
        "rows": (5, 1),
    }
    assert [sample.id for sample in benchmark.examples(1)] == ["0", "1", "2", "4"]
    assert benchmark.count(1) == 4 and benchmark.count() == 5
    some = Rows(rows=benchmark.init_args["rows"], scenes=True, tasks=["distance"])
    assert [sample.id for sample in some.examples()] == ["0", "3"] and some.count(1) == 1
    assert some.sample(items[3]).turns == next(iter([s for s in benchmark.examples() if s.id == "3"])).turns


def test_another_file_is_another_setting(written, tmp_path):
    first = Rows(rows=written(*SCENES), scenes=True)
    settings = first.settings()
    again = build(json.loads(json.dumps(first.spec())), Benchmark)
    assert again.settings() == settings and again.protocol == first.protocol
    assert Rows(rows=written(*SCENES), scenes=True, scoring="words").settings() != settings
    assert Rows(rows=written(*SCENES[:3]), scenes=True).settings() != settings
    written(*SCENES)
    Image.effect_noise((96, 48), 90).save(tmp_path / "1.png")
    assert first.settings() != settings
    # a picture of as many bytes is another one, too
    edited = bytearray((tmp_path / "2.png").read_bytes())
    settings = first.settings()
    edited[-20] ^= 1
    (tmp_path / "2.png").write_bytes(edited)
    assert first.settings() != settings
    (tmp_path / "1.png").unlink()
    with pytest.raises(ValueError, match=r"mine.jsonl line 1: image .*1.png is not there; bring it"):
        first.settings()


@pytest.mark.parametrize(
    ("rows", "options", "says"),
    [
        ([row("a", "b", image="9.png")], {"scoring": "number"}, "line 1: the answer 'b' is no number; correct it"),
        ([row("a", "bc")], {"scoring": "choice"}, "line 1: the answer 'bc' is no letter; correct it"),
        ([row("a", "b"), row("c", " ")], {}, "line 2.* has no answer to"),
        ([row("<image>", "b")], {}, "line 1: has 1 <image> marks and 0 images"),
        ([row("<image>", "b", image=["0.png"])], {"scenes": True}, "line 1: has 1 image, but a scene takes 2"),
        ([{"conversations": [{"from": "human", "value": "x"}]}], {}, "line 1.* has no answer"),
        (SCENES, {"tasks": ["distanse"], "scenes": True}, "task 'distanse' is unknown; did you mean 'distance'"),
        (SCENES, {"scoring": "word"}, "scoring 'word' is unknown; did you mean 'words'"),
        (SCENES, {}, "1 <image> marks and 2 images; they must be as many, unless scenes says"),
    ],
)
def test_mistakes_are_told_before_any_work(written, rows, options, says):
    with pytest.raises(ValueError, match=says) as error:
        Rows(rows=written(*rows), **options)
    assert "\n" not in str(error.value)


def test_a_report_outlives_the_rows_and_their_pictures(model_dir, written, tmp_path):
    asked = [row(f"<image>\nWhat is {k}?", "red", image=f"{k}.png") for k in range(4)] + [row("And?", "yes")]
    path = written(*asked)
    loaded = open_model(str(model_dir), device="cpu")
    reductions = {"random:0.5": reducers("random:0.5")}
    evaluate(loaded, [Rows(rows=path)], out=tmp_path / "run", max_new_tokens=2, reductions=reductions)

    def shown():
        page([tmp_path / "run"], tmp_path / "page.html")
        return (tmp_path / "page.html").read_text()

    html = shown()
    assert html.count("text only") == 1 and html.count("draws another") == html.count("no longer there") == 0
    (tmp_path / "0.png").rename(tmp_path / "renamed.png")
    html = shown()
    assert html.count("no longer there") == 1 and html.count("What is 0?") and html.count('<article class="item">') == 5
    written(*asked[:2])
    html = shown()
    assert html.count("no longer there") == 3 and html.count('<article class="item">') == 5
    (tmp_path / "mine.jsonl").unlink()
    html = shown()
    assert "this is the table as it was stored" in html and "mine.jsonl: no such file" in html
    assert "<td>rows/mine</td>" in html and "Provenance" in html
    (tmp_path / "run" / "summary.json").unlink()
    assert "and no table is stored" in shown()


def test_from_the_command_line(surveying, written, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save(surveying(TinyGeo(), Add(align="pool")).model, tmp_path / "m")
    written(*SCENES)
    command = ["evaluate", "m", "--device", "cpu", "--benchmarks", "rows", "--json", "--max-new-tokens", "4"]
    assert main([*command, "--rows", "mine.jsonl", "--scenes", "--out", "a"]) == 0
    found = json.loads(capsys.readouterr().out)
    # pictures alone are a scene: another one's are exchanged for them
    assert [one["name"] for one in found["compared"]] == ["as it is", "geometry:other"]
    assert [line["name"] for line in found["rows"]][-1] == "rows" and found["rows"][-1]["n"] == 4
    assert [record.visual_tokens for record in read_items(tmp_path / "a")] == [49] * 4
    assert main([*command, "--rows", "mine.jsonl", "--out", "b"]) == 2
    assert "1 <image> marks and 2 images" in capsys.readouterr().err
    assert main([*command]) == 2
    assert "rows: no file was given; name one with --rows" in capsys.readouterr().err
    monkeypatch.chdir(tmp_path / "a")
    assert main(["report", ".", "--out", "page.html", "--examples", "2"]) == 0
    assert "How far is the lamp?" in (tmp_path / "a" / "page.html").read_text()
    assert np.isfinite(found["rows"][-1]["score"])
