"""The audit of scenes: it passes scenes that keep their answer to themselves, and fails those that do not."""

import importlib
import json
from dataclasses import replace
from pathlib import Path

import pytest

from gnomon.data.sources.scenes.tasks.nearer import Nearer

BENCH = Path(__file__).parents[2] / "bench"
FAIR = {"chance": 0.5, "text": 0.51, "linear": 0.48, "network": 0.5, "pixels": 0.53, "depth": 1.0, "two_views": 0.99}
MANY = {"items": 10_000, "pixel_items": 10_000, "oracle_items": 500}


@pytest.fixture
def audit(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCH))
    return importlib.import_module("audit_scenes")


def run(audit, out, *more):
    few = ["--items", "250", "--pixel-items", "0", "--oracle-items", "40", "--out", str(out)]
    return audit.main([*few, "--tasks", *more])


@pytest.mark.parametrize(("option", "told"), [("--items", "items are 0"), ("--oracle-items", "oracle items are 0")])
def test_nothing_to_audit_is_told_in_one_line(audit, tmp_path, option, told):
    with pytest.raises(SystemExit, match=f"audit_scenes: {told}; give 1 or more"):
        run(audit, tmp_path / "a.json", "nearer", option, "0")


def test_scenes_as_they_are_tell_nothing_in_two_dimensions(audit, tmp_path, capsys):
    assert run(audit, tmp_path / "a.json", "nearer", "direction") == 0
    assert "over the limit" not in capsys.readouterr().err
    rows = json.loads((tmp_path / "a.json").read_text())["tasks"]
    assert rows["nearer"]["depth"] == 1 and rows["direction"]["chance"] == 0.25


def test_metric_sizes_of_their_own_are_found_out(audit, tmp_path, capsys, monkeypatch):
    """Sizes that do not grow with the distance make what is nearer look larger: 78 % by areas alone."""

    def naive(task, draws, layout, setting):
        found = fair(task, draws, layout, setting)
        return replace(found, radii=draws.spread(0.2, 0.6, *found.radii.shape))

    fair = Nearer.candidates
    monkeypatch.setattr(Nearer, "candidates", naive)
    assert run(audit, tmp_path / "a.json", "nearer") == 1
    said = capsys.readouterr().err.splitlines()
    assert any(line.startswith("over the limit: nearer: linear ") for line in said)
    assert json.loads((tmp_path / "a.json").read_text())["tasks"]["nearer"]["linear"] > 0.65


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({}, None),
        ({"text": 0.531}, "text 53.1%, chance 50.0%, limit 3.0%"),
        ({"network": 0.469}, "network 46.9%"),
        ({"pixels": 0.551}, "pixels 55.1%, chance 50.0%, limit 5.0%"),
        ({"linear": float("nan")}, "linear nan%"),
        ({"depth": 0.998}, "depth 99.8%, at least 100.0% expected"),
        ({"two_views": 0.92}, "two views 92.0%, at least 92.1% expected"),
        ({"depth": None, "two_views": None}, None),
    ],
)
def test_each_limit(audit, change, told):
    found = audit.breaches("nearer", {**FAIR, **change}, MANY)
    assert len(found) == (told is not None) and (told is None or told in found[0])


def test_few_items_are_given_three_standard_errors(audit):
    """Of 100 coins the standard error is 5 points."""
    few = {**MANY, "items": 100}
    assert not audit.breaches("nearer", {**FAIR, "linear": 0.649}, few)
    assert audit.breaches("nearer", {**FAIR, "linear": 0.651}, few)


def test_depth_is_held_to_less_where_rounding_decides(audit):
    assert not audit.breaches("height", {**FAIR, "depth": 0.9894}, MANY)
    assert audit.breaches("height", {**FAIR, "depth": 0.96}, MANY)


def test_the_committed_table_is_within_the_limits(audit):
    kept = json.loads((BENCH / "results" / "audit_scenes.json").read_text())
    assert len(kept["tasks"]) == 12
    assert not [line for task, row in kept["tasks"].items() for line in audit.breaches(task, row, kept)]
