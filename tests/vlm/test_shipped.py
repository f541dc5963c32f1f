from __future__ import annotations

from pathlib import Path

import pytest

from gnomon.vlm import shipped
from gnomon.vlm.geometry.plane_sweep import PlaneSweep

CONFIGS = Path(__file__).parents[2] / "configs"


def test_names_in_the_package_and_other_paths():
    assert shipped.resolve("configs:model/demo.yaml").samefile(CONFIGS / "model" / "demo.yaml")
    assert shipped.resolve("configs/model") == Path("configs/model")
    assert not shipped.place("nothing/of/that/name").exists()


def test_weights_that_the_package_does_not_have_are_told():
    with pytest.raises(ValueError, match="weights configs:nowhere do not exist"):
        PlaneSweep(weights="configs:nowhere")
