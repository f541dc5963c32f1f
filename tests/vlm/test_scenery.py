"""What a model with a geometry encoder takes."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from gnomon.vlm.save import describe, from_config

DEMO = Path(__file__).parents[2] / "configs"


def parts() -> dict:
    given = yaml.safe_load((DEMO / "model/demo.yaml").read_text())["model"]
    told = yaml.safe_load((DEMO / "demo/scenes.yaml").read_text())["model"]
    return {**given, **told}


def test_a_model_may_take_fewer_views_than_its_encoder():
    model = from_config(parts())
    assert model.views.most is None and "max_views" not in describe(model)
    model = from_config({**parts(), "max_views": 2})
    assert model.views.most == 2 and describe(model)["max_views"] == 2
    model.geometry.max_views = 1
    model.join(model.geometry, model.fusion)
    assert model.views.most == 1
    with pytest.raises(ValueError, match="max_views is 0, but must be at least 1"):
        from_config({**parts(), "max_views": 0})
