"""Differences of two runs, against numbers worked out by hand; variants on the same items, against their own runs."""

import json

import numpy as np
import pytest
import torch

from gnomon.data.example import Example
from gnomon.eval import names
from gnomon.eval.benchmark import Item, Score, Scored
from gnomon.eval.benchmarks.diagrams import Diagrams
from gnomon.eval.compare import difference
from gnomon.eval.evaluate import evaluate
from gnomon.eval.record import HEADER, REDUCED, read_items
from gnomon.eval.report import page
from gnomon.eval.runner import kept_cells, kept_text
from gnomon.eval.session import open_model


def scored(values: dict[str, list[float]], family: str = "f") -> list[Scored]:
    return [
        Scored(Item(f"{task}{k}", family, f"{family}/{task}", 1, "?", None, ""), Score(value, ""), f"{task}{k}")
        for task, row in values.items()
        for k, value in enumerate(row)
    ]


def test_means_over_tasks_and_families_as_in_the_table():
    base = scored({"a": [1, 1, 0, 0], "b": [1, 0]}) + scored({"c": [1]}, "g")
    other = scored({"a": [1, 0, 0, 0], "b": [1, 1]}) + scored({"c": [0]}, "g")
    found = difference(other, base)
    # family f: (-1/4 + 1/2) / 2 = 1/8; family g: -1; mean of both
    assert found.points == pytest.approx((1 / 8 - 1) / 2)
    assert found.score == pytest.approx(((1 / 4 + 1) / 2 + 0) / 2)
    assert found.n == 7
    # one item is right in `other` alone, two in `base` alone: 2 * (1 + 3) / 8, capped
    assert found.p == 1.0


def test_the_interval_is_of_the_difference_and_not_of_the_scores():
    """Both runs swing widely over items but differ on every twentieth alone: unpaired intervals span +-10 points."""
    draw = np.random.default_rng(0)
    base = draw.integers(0, 2, 400).astype(float)
    other = base.copy()
    worse = np.flatnonzero(base)[:20]
    other[worse] = 0
    found = difference(scored({"a": other.tolist()}), scored({"a": base.tolist()}))
    assert found.points == pytest.approx(-0.05)
    # binomial: 0.05 +- 1.96 sqrt(0.05 * 0.95 / 400)
    assert found.low == pytest.approx(-0.0714, abs=0.004) and found.high == pytest.approx(-0.0286, abs=0.004)
    assert found.p == pytest.approx(2 * 0.5**20)


def test_nothing_in_common_is_an_error():
    with pytest.raises(ValueError, match="no item in common"):
        difference(scored({"a": [1]}), scored({"b": [1]}))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("fastvee:0.5", "did you mean 'fastv'"),
        ("fastv:1.5", "ratio 1.5"),
        ("fastv:half", "ratio 'half'"),
        ("fastv:0.5,depth=3", "no option of fastv"),
        ("fastv:0.5,layer=0", "layer 0"),
        ("fastv:0.5,layer=x", "layer 'x' does not fit; give an integer"),
        ("fastv:0.5,layer=1.5", "layer 1.5 does not fit; give an integer"),
        ("fastv:0.5,layer=true", "layer True does not fit; give an integer"),
        ("fastv:0.5,rows=2", "rows 2 does not fit; give 'last' or 'all'"),
        ("fastv:[1", r"ratio '\[1' does not fit; give a number"),
        ("random:0.5,seed=x", "seed 'x' does not fit; give an integer"),
        ("pyramiddrop:0.5,layers=1/x", "layers .* does not fit; give a sequence of integers, with / between them"),
        ("tome:0.5,inside=2", "inside 2 does not fit; give True or False"),
    ],
)
def test_a_wrong_reduction_is_refused_in_one_line(text, message):
    with pytest.raises(ValueError, match=message) as found:
        names.reducers(text)
    assert "\n" not in str(found.value)


def test_reductions_by_name():
    first, second = names.reducers("random:0.5,seed=3+fastv:0.25,layer=1")
    assert (first.ratio, first.seed, second.ratio, second.layers) == (0.5, 3, 0.25, (1,))
    for text, layers in (("layers=3", (3,)), ("layers=1/3", (1, 3))):
        assert names.reducers(f"pyramiddrop:0.5,{text}")[0].layers == layers


@pytest.mark.parametrize("name", names.known_reducers())
def test_every_reduction_takes_a_share_and_a_position(name):
    (reducer,) = names.reducers(f"{name}:1,position=keep")
    assert (reducer.ratio, reducer.position) == (1, "keep")


@pytest.fixture(scope="module")
def loaded(model_dir):
    return open_model(str(model_dir), device="cpu")


def bench():
    return Diagrams(tasks=["shape", "tangram"], size=(112, 112))


def test_variants_equal_runs_of_their_own(loaded, tmp_path):
    """Sharing the encoder's output changes no answer: each variant against a model that has the reducer built in."""
    texts = ["random:0.5", "fastv:0.25,layer=1", "random:1"]
    reductions = {text: names.reducers(text) for text in texts}
    result = evaluate(loaded, [bench()], out=tmp_path / "all", limit=4, reductions=reductions)
    assert [one.name for one in result.compared] == ["as it is", *texts]
    for text, folder in zip(texts, ["random-0.5", "fastv-0.25-layer=1", "random-1"]):
        loaded.model.reducers = reductions[text]
        alone = evaluate(loaded, [bench()], out=tmp_path / folder, limit=4)
        loaded.model.reducers = []
        mine = {r.key: (r.raw, r.kept) for r in read_items(tmp_path / "all" / REDUCED / folder)}
        assert mine == {r.key: (r.raw, r.kept) for r in read_items(alone.folder)}
    plain, half, quarter, whole = result.compared
    assert whole.difference.points == 0 == whole.difference.low == whole.difference.high
    assert (plain.kept, whole.kept) == (1, 1) and half.kept == 25 / 49 and quarter.kept == 13 / 49
    assert loaded.model.reducers == []


def test_a_run_without_reductions_is_continued_with_them(loaded, tmp_path):
    first = evaluate(loaded, [bench()], out=tmp_path, limit=2)
    again = evaluate(loaded, [bench()], out=tmp_path, limit=2, reductions={"random:0.5": names.reducers("random:0.5")})
    assert again.rows == first.rows and len(read_items(tmp_path)) == len(first.scored)
    assert len(read_items(tmp_path / REDUCED / "random-0.5")) == len(first.scored)


def test_only_items_that_all_variants_have_are_compared(loaded, tmp_path):
    """A base of more items than its variant: its row is that of a run with the variant's items alone."""
    evaluate(loaded, [bench()], out=tmp_path / "run", limit=6)
    reductions = {"random:0.5": names.reducers("random:0.5")}
    plain, half = evaluate(loaded, [bench()], out=tmp_path / "run", limit=2, reductions=reductions).compared
    assert plain.difference.n == half.difference.n == plain.cost.items == half.cost.items == 4
    alone = evaluate(loaded, [bench()], out=tmp_path / "alone", limit=2)
    assert plain.difference.score == np.mean([s.score.value for s in alone.scored])
    first = [r for r in read_items(tmp_path / "run") if r.key in {a.key for a in read_items(tmp_path / "alone")}]
    assert plain.prefill_ms == pytest.approx(250 * sum(r.seconds_prefill for r in first))
    page([tmp_path / "run"], tmp_path / "page.html")
    assert "<td>as it is</td><td>4</td>" in (tmp_path / "page.html").read_text()


def test_a_layer_that_the_model_lacks_is_refused_before_any_work(loaded, tmp_path):
    with pytest.raises(ValueError, match="before layer 9"):
        evaluate(loaded, [bench()], out=tmp_path, limit=2, reductions={"x": names.reducers("fastv:0.5,layer=9")})
    assert not (tmp_path / "items.jsonl").exists()


def test_the_report_compares_and_shows_what_is_kept(loaded, tmp_path):
    reductions = {text: names.reducers(text) for text in ("random:0.5", "fastv:0.25,layer=1")}
    evaluate(loaded, [bench()], out=tmp_path / "run", limit=2, reductions=reductions)
    page([tmp_path / "run"], tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text()
    assert text.count("Variants of") == 1 and text.count("Evaluation of") == 1
    assert "What is kept" in text and "fastv:0.25,layer=1" in text and text.count("<figure>") >= 6


def test_the_report_leaves_out_variants_of_other_questions(loaded, tmp_path):
    reductions = {text: names.reducers(text) for text in ("random:0.5", "random:0.25")}
    evaluate(loaded, [bench()], out=tmp_path / "run", limit=2, reductions=reductions)
    path = tmp_path / "run" / REDUCED / "random-0.5" / HEADER
    header = json.loads(path.read_text())
    header["identity"]["benchmarks"]["diagrams"]["init_args"]["seed"] = 7
    path.write_text(json.dumps(header))
    page([tmp_path / "run"], tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text()
    assert "The variant random:0.5 is left out: it was made with other benchmarks" in text
    assert "<td>random:0.25</td>" in text and "<td>random:0.5</td>" not in text


def test_kept_cells_come_back():
    grids = [(0, 2, 3), (1, 2, 2)]
    places = torch.tensor([(i, r, c) for i, h, w in grids for r in range(h) for c in range(w)])
    none = torch.zeros(len(places), dtype=torch.long)
    example = Example("x", none, none, places[:, 0], places[:, 1:])
    first, second = kept_text(example, [(0, 0, 0), (0, 1, 2), (1, 1, 0)])
    assert (first, second) == ("2x3:21", "2x2:2")
    assert kept_cells(first).tolist() == [[True, False, False], [False, False, True]]
    assert kept_cells(second).tolist() == [[False, False], [True, False]]
