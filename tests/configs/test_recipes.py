"""Every overlay that converts a model gives it mixers that its recipe can teach, and then train."""

from pathlib import Path

import pytest

from gnomon.train.callbacks.transfer import check
from gnomon.train.parsing import FitCLI
from gnomon.vlm.freeze import freeze
from gnomon.vlm.save import from_config

ROOT = Path(__file__).resolve().parents[2] / "configs"


@pytest.mark.parametrize("overlay", sorted(ROOT.glob("recipes/*.yaml")), ids=lambda path: path.stem)
def test_the_demo_is_converted(overlay, tmp_path):
    files = [ROOT / "model" / "demo.yaml", ROOT / "demo" / "quick.yaml", overlay]
    cli = FitCLI([*(word for file in files for word in ("--config", str(file))), "--out", str(tmp_path)])
    cli.instantiate()
    model = from_config({name: value for name, value in cli.plain()["model"].items() if name != "checkpoint"})
    transfer, tune = cli.config_init.recipe.stages()
    check(model, list(tune.rates))
    for stage in (transfer, tune):
        freeze(model, list(stage.rates))
        assert any(p.requires_grad for p in model.lm.layers.parameters())
