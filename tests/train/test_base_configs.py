"""Every shipped base overlay fits on top of a run's configuration and says what its name promises."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from gnomon.train.parsing import FitCLI

BASE = Path(__file__).resolve().parents[2] / "configs" / "base"
NAMES = sorted(entry.name for entry in BASE.iterdir() if entry.name.endswith(".yaml"))


@pytest.mark.parametrize("name", NAMES)
def test_overlay(demo, tmp_path, name):
    path = str(BASE.joinpath(name))
    plain = FitCLI(["--config", str(demo / "config.yaml"), "--out", str(tmp_path)]).plain()
    merged = FitCLI(["--config", str(demo / "config.yaml"), "--config", path, "--out", str(tmp_path)]).plain()
    overlay = yaml.safe_load(BASE.joinpath(name).read_text())
    for section, options in overlay.items():
        if isinstance(options, dict):
            assert merged[section] == plain[section] | options
        else:
            assert merged[section] == options != plain[section]
