"""Geometry overlays parse against the signatures that they configure, and every geometry encoder has one."""

from pathlib import Path

import pytest

from gnomon.cli.methods import files
from gnomon.train.parsing import FitCLI

ROOT = Path(__file__).resolve().parents[2] / "configs"
OVERLAYS = sorted((ROOT / "geometry").glob("*.yaml"))


@pytest.mark.parametrize("overlay", OVERLAYS, ids=lambda path: path.stem)
def test_a_geometry_overlay_names_its_encoder(overlay, tmp_path):
    configs = (ROOT / "model" / "demo.yaml", ROOT / "demo" / "quick.yaml", overlay)
    words = [word for config in configs for word in ("--config", str(config))]
    geometry = FitCLI([*words, "--out", str(tmp_path)]).plain()["model"]["geometry"]
    assert geometry["class_path"].split(".")[-2] == overlay.stem


def test_every_geometry_encoder_has_an_overlay():
    assert {file.stem for file in files("geometry")} == {path.stem for path in OVERLAYS}
