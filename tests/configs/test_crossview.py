"""Overlays of attention across views go on top of every encoder that takes them, and every method has one."""

from pathlib import Path

import pytest

from gnomon.cli.methods import files
from gnomon.train.parsing import FitCLI
from gnomon.vlm.multiview.cross import CrossView
from gnomon.vlm.part import build

ROOT = Path(__file__).resolve().parents[2] / "configs"
OVERLAYS = sorted((ROOT / "crossview").glob("*.yaml"))


@pytest.mark.parametrize("encoder", ["vggt", "tinygeo", "pi3", "depth_anything_3"])
@pytest.mark.parametrize("overlay", OVERLAYS, ids=lambda path: path.stem)
def test_an_overlay_names_its_method(overlay, encoder, tmp_path):
    configs = (
        ROOT / "model" / "demo.yaml",
        ROOT / "demo" / "quick.yaml",
        ROOT / "geometry" / f"{encoder}.yaml",
        overlay,
    )
    words = [word for config in configs for word in ("--config", str(config))]
    geometry = FitCLI([*words, "--out", str(tmp_path)]).plain()["model"]["geometry"]
    assert geometry["class_path"].split(".")[-2] == encoder and "weights" in geometry["init_args"]
    cross = geometry["init_args"]["cross"]
    assert cross["class_path"].split(".")[-2] == overlay.stem
    made = build(cross, CrossView)
    assert all(getattr(made, name) == value for name, value in cross["init_args"].items())


def test_every_method_has_an_overlay():
    assert {file.stem for file in files("crossview")} == {path.stem for path in OVERLAYS}
