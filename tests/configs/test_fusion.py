"""Fusion overlays parse against the signatures that they configure, and every fusion has one."""

from pathlib import Path

import pytest

from gnomon.train.parsing import FitCLI
from gnomon.vlm.fusion.base import Fusion
from gnomon.vlm.part import build

ROOT = Path(__file__).resolve().parents[2]
OVERLAYS = sorted((ROOT / "configs" / "fusion").glob("*.yaml"))


@pytest.mark.parametrize("overlay", OVERLAYS, ids=lambda path: path.stem)
def test_a_fusion_overlay_names_its_fusion(overlay, tmp_path):
    configs = [ROOT / "configs" / name for name in ("model/demo.yaml", "demo/quick.yaml")]
    words = [word for config in (*configs, overlay) for word in ("--config", str(config))]
    model = FitCLI([*words, "--out", str(tmp_path)]).plain()["model"]
    fusion = build(model["fusion"], Fusion)
    assert type(fusion).__module__.endswith(f".{overlay.stem}")


def test_every_fusion_has_an_overlay():
    assert {path.stem for path in (ROOT / "vlm" / "fusion").glob("*.py")} - {"base"} == {path.stem for path in OVERLAYS}
