"""The page: self-contained, escaped, with the training, the table and the diagrams; and one line for what is wrong."""

import base64
import io
import json
import re
import shutil
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from gnomon.eval.benchmark import Item, Score, Scored
from gnomon.eval.benchmarks.diagrams import Diagrams
from gnomon.eval.benchmarks.scenes import Scenes
from gnomon.eval.evaluate import evaluate
from gnomon.eval.page.evaluation import _bars
from gnomon.eval.record import ITEMS
from gnomon.eval.report import page
from gnomon.eval.session import open_model
from gnomon.eval.shown import choose
from gnomon.vlm.fusion.weighted import Weighted
from gnomon.vlm.geometry.known import Known

VOID = {"meta", "img", "br"}


class Balanced(HTMLParser):
    """Fails on a tag that is closed out of order; collects what would be loaded from elsewhere."""

    def __init__(self):
        super().__init__()
        self.open, self.loads, self.scripts = [], [], 0

    def handle_starttag(self, tag, attrs):
        if tag not in VOID:
            self.open.append(tag)
        self.scripts += tag == "script"
        self.loads += [v for k, v in attrs if k in ("src", "href") and not v.startswith("data:")]

    def handle_startendtag(self, tag, attrs):
        pass

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


@pytest.fixture(scope="module")
def run(model_dir, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    benchmark = Diagrams(tasks=["angle", "parallel", "count"], size=(112, 112))
    evaluate(open_model(str(model_dir), device="cpu"), [benchmark], out=folder / "eval", limit=4)
    lines = (folder / "eval" / ITEMS).read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    rows[0]["raw"] = "<script>alert(1)</script>"
    (folder / "eval" / ITEMS).write_text("".join(json.dumps(row) + "\n" for row in rows))
    steps = ({"stage": "s", "step": k, "loss": 5 / k, "lr": 1e-3 / k, "tokens": 100 * k} for k in range(1, 80))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(step) + "\n" for step in steps))
    return folder


@pytest.fixture(scope="module")
def html(run, tmp_path_factory):
    out = tmp_path_factory.mktemp("out") / "deep" / "report.html"
    page([run], out, examples=7)
    return out.read_text()


def test_self_contained_and_well_formed(html):
    parser = Balanced()
    parser.feed(html)
    assert parser.open == [] and parser.loads == [] and parser.scripts == 0
    assert not re.search(r"@import|url\(|https?://", html)


def test_everything_is_there(html):
    assert html.count('<article class="item">') == 7 and html.count("data:image/png;base64,") == 7
    for text in (
        "training loss",
        "learning rate",
        "standin/geoperception",
        "mean of 2",
        "Provenance",
        "model hash",
        "By level",
    ):
        assert text in html
    assert "prefers-color-scheme: dark" in html


def test_text_of_models_is_escaped(html):
    assert "<script>" not in html and "&lt;script&gt;alert(1)" in html


def test_the_pictures_are_those_that_were_asked_about(html):
    data = re.search(r'data:image/png;base64,([^"]+)', html)[1]
    shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))
    benchmark = Diagrams(tasks=["angle", "parallel", "count"], size=(112, 112))
    assert any(np.array_equal(shown, sample.images[0]) for sample in benchmark.examples(4))


@pytest.fixture(scope="module")
def scenes_html(surveying, tmp_path_factory):
    folder = tmp_path_factory.mktemp("scenes")
    loaded = surveying(Known(patch=16), Weighted(align="merge"))
    evaluate(loaded, [Scenes(tasks=["nearer", "count"], size=(64, 64))], out=folder, limit=4, geometry=["other"])
    page([folder], folder / "report.html", examples=3)
    return (folder / "report.html").read_text()


def test_geometry_of_the_items_that_are_shown_is_on_the_page(scenes_html):
    parser = Balanced()
    parser.feed(scenes_html)
    assert parser.open == [] and parser.loads == [] and parser.scripts == 0
    assert not re.search(r"@import|url\(|https?://", scenes_html)
    # of three items that are shown; the same model with another scene's geometry has a row, and no panels of its own
    assert scenes_html.count('<article class="card scene">') == 3 and "geometry:other" in scenes_html
    for text in ("view 1", "predicted depth", "true depth", "from above", "from the right side", "mean 0.500"):
        assert text in scenes_html


def test_bars_bear_the_names_of_tasks_whose_family_has_several():
    tasks = {"motion_angle": "motion", "motion_direction": "motion", "count": "counting"}
    meta = {"predicate": "", "choices": ["x", "y"]}
    scored = [
        Scored(Item(f"{k}", f"scenes/{family}", f"scenes/{task}", 1, "", "A", "A", meta=meta), Score(1.0, "A"), k)
        for task, family in tasks.items()
        for k in range(2)
    ]
    bars = _bars(Scenes(tasks=list(tasks)).summary(scored, resamples=10))
    assert [bar.name for bar in bars] == [
        "scenes",
        "scenes/motion",
        "motion angle",
        "motion direction",
        "scenes/counting",
    ]


def test_no_geometry_no_section(html, scenes_html):
    assert "Geometry, as" in scenes_html and "Geometry, as" not in html


def test_without_training_there_is_a_sentence(run, tmp_path):
    page([run / "eval"], tmp_path / "x.html", examples=0)
    html = (tmp_path / "x.html").read_text()
    assert "no training metrics" in html and "<article" not in html


def test_without_a_loss_there_is_a_sentence(tmp_path):
    (tmp_path / "metrics.csv").write_text("step,lr\n1,0.1\n")
    page([tmp_path], tmp_path / "x.html")
    assert "holds no loss" in (tmp_path / "x.html").read_text()


def test_a_page_that_cannot_be_written_is_told_before_any_work(tmp_path):
    (tmp_path / "file").touch()
    for out in (tmp_path, tmp_path / "file" / "x.html"):
        with pytest.raises(ValueError, match=r"cannot be written .*; choose another --out"):
            page([tmp_path / "nothing"], out)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_wrong_directories(tmp_path):
    with pytest.raises(ValueError, match="is not a directory"):
        page([tmp_path / "none"], tmp_path / "x.html")
    with pytest.raises(ValueError, match="neither training metrics nor an evaluation"):
        page([tmp_path], tmp_path / "x.html")
    (tmp_path / "header.json").write_text('{"identity": {"benchmarks": {}}, "sessions": []}')
    with pytest.raises(ValueError, match="no answers yet"):
        page([tmp_path], tmp_path / "x.html")


def test_every_run_of_a_folder_has_a_section(tmp_path):
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "metrics.jsonl").write_text('{"stage": "s", "step": 1, "loss": 2.0}\n')
    page([tmp_path, tmp_path / "first"], tmp_path / "x.html")
    html = (tmp_path / "x.html").read_text()
    assert html.count("<h2>Training</h2>") == 2
    assert all(str(tmp_path / name) in html for name in ("first", "second"))


def test_an_evaluation_without_answers_does_not_refuse_the_others(run, tmp_path):
    shutil.copytree(run / "eval", tmp_path / "whole")
    (tmp_path / "begun").mkdir()
    shutil.copy(run / "eval" / "header.json", tmp_path / "begun")
    page([tmp_path], tmp_path / "x.html", examples=2)
    html = (tmp_path / "x.html").read_text()
    assert "begun has a header but no answers yet" in html and html.count('<article class="item">') == 2


def test_the_choice_is_diverse_and_does_not_look_at_scores():
    def one(task, level, value):
        return Scored(Item(f"{task}{level}", "f", task, level, "", "", ""), Score(value, ""), 0)

    scored = [one(task, level, 0.0) for task in "abc" for level in (1, 2, 3) for _ in range(2)]
    chosen = choose(scored, 9)
    assert sorted((s.item.task, s.item.level) for s in chosen) == [(t, k) for t in "abc" for k in (1, 2, 3)]
    assert len({(s.item.task, s.item.level) for s in choose(scored, 3)}) == 3
    assert len(choose(scored, 100)) == len(scored)
    other = [one(s.item.task, s.item.level, 1.0) for s in scored]
    assert [s.item for s in choose(other, 9)] == [s.item for s in chosen]
