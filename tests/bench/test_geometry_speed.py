"""The bench of geometry encoders says in one line what it cannot time."""

import importlib
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--views", "0"], "0 views show nothing; give 1 or more"),
        (["--repeat", "0"], "repeat is 0; give 1 or more"),
        (["--threads", "0"], "threads is 0; give 1 or more"),
        (["--weights", "/nope"], "/nope"),
    ],
)
def test_what_cannot_be_timed_is_told_in_one_line(monkeypatch, options, told):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "bench"))
    monkeypatch.setattr(sys, "argv", ["geometry_speed.py", *options])
    with pytest.raises(SystemExit, match=f"^geometry_speed: .*{told}") as found:
        importlib.import_module("geometry_speed").main()
    assert "\n" not in str(found.value)
