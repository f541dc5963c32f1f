"""Whatever the weights are in, depth and cameras come to the geometry encoder as the sample has them."""

from __future__ import annotations

import pytest
import torch
import yaml

from gnomon.train.module import StageModule
from gnomon.train.strategies import ZeroPrecision
from gnomon.vlm.layout import Views


@pytest.mark.parametrize("precision", ["bf16-true", "bf16-mixed"])
def test_half_precision_leaves_depth_and_cameras_alone(fit, by_turns, tmp_path, monkeypatch, precision):
    found = {"training_step": [], "validation_step": []}

    def watch(name):
        step = getattr(StageModule, name)

        def seen(self, batch, index):
            found[name] += batch.views
            assert torch.get_default_dtype() == torch.float32
            return step(self, batch, index)

        monkeypatch.setattr(StageModule, name, seen)

    for name in found:
        watch(name)
    data = by_turns("SPTS")
    model = {
        "geometry": {"class_path": "gnomon.vlm.geometry.known.Known", "init_args": {"patch": 8, "octaves": 2}},
        "fusion": {"class_path": "gnomon.vlm.fusion.concat.Concat", "init_args": {"merge": 2}},
    }
    trainer = {"max_steps": 2, "val_check_interval": 1, "precision": precision}
    (tmp_path / "c.yaml").write_text(
        yaml.safe_dump({"model": model, "data": {**data, "val": data["train"]}, "trainer": trainer})
    )
    fit(tmp_path / "run", "--config", str(tmp_path / "c.yaml"))
    assert all(found.values())
    for views in (*found["training_step"], *found["validation_step"]):
        for value in (views.depth, views.intrinsics, views.extrinsics):
            # with more digits than bfloat16 has
            assert value.dtype == torch.float32 and bool((value.bfloat16().float() != value).any())


@pytest.mark.parametrize("precision", ["bf16-true", "bf16-mixed", "32-true"])
def test_deepspeed_leaves_depth_and_cameras_alone(precision):
    views = Views(torch.zeros(1, 3, 2, 2, dtype=torch.uint8), [0], torch.full((1, 3, 3), 56.3))
    assert ZeroPrecision(precision).convert_input([views])[0].intrinsics.tolist() == views.intrinsics.tolist()
