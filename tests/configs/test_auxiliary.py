"""Overlays of auxiliary losses parse against the signatures that they configure, and every loss has one."""

from pathlib import Path

import pytest

from gnomon.train.parsing import FitCLI
from gnomon.vlm.auxiliary.base import AuxLoss
from gnomon.vlm.part import build

ROOT = Path(__file__).resolve().parents[2]
OVERLAYS = sorted((ROOT / "configs" / "auxiliary").glob("*.yaml"))


@pytest.mark.parametrize("overlay", OVERLAYS, ids=lambda path: path.stem)
def test_an_overlay_names_its_loss(overlay, tmp_path):
    configs = [ROOT / "configs" / name for name in ("model/demo.yaml", "demo/quick.yaml")]
    words = [word for config in (*configs, overlay) for word in ("--config", str(config))]
    (spec,) = FitCLI([*words, "--out", str(tmp_path)]).plain()["model"]["aux"]
    # its weights are not here
    encoder = spec["init_args"].pop("encoder", None)
    assert encoder is None or encoder["init_args"]["path"]
    loss = build(spec, AuxLoss)
    assert type(loss).__module__.endswith(f".{overlay.stem}")


def test_every_loss_has_an_overlay():
    files = {path.stem for path in (ROOT / "vlm" / "auxiliary").glob("*.py")} - {"base"}
    assert files == {path.stem for path in OVERLAYS}
