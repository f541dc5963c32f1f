"""The bench of scenes says in one line what it cannot make."""

import importlib
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--items", "0"], "0 items take no time; make 1 or more"),
        (["--items", "1", "--sizes", "16"], "too small for objects; use at least 48 pixels"),
    ],
)
def test_what_cannot_be_made_is_told_in_one_line(monkeypatch, tmp_path, options, told):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "bench"))
    monkeypatch.setattr(sys, "argv", ["data_scenes.py", *options, "--out", str(tmp_path / "x.json")])
    with pytest.raises(SystemExit, match=f"^data_scenes: .*{told}") as found:
        importlib.import_module("data_scenes").main()
    assert "\n" not in str(found.value)
