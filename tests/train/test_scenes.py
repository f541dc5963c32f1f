"""Two processes with unlike batches train as one does and do not wait forever.

Often only one has geometry in its batch, or knows the cameras of its scenes, or has pictures of several sizes.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

pytestmark = pytest.mark.timeout(180)

NO_DROPOUT = ("--model.lm.init_args.config.attention_dropout", "0.0")


@pytest.fixture
def options(by_turns, tmp_path) -> tuple[str, ...]:
    """Scenes, pictures and text by turns, four to a step: the first rank, the second, both or none have scenes."""
    config = {
        "model": {
            "geometry": {"class_path": "gnomon.vlm.geometry.known.Known", "init_args": {"patch": 8, "octaves": 2}},
            "fusion": {
                "class_path": "gnomon.vlm.fusion.geosr_dynamic.GeoSRDynamic",
                "init_args": {"merge": 2, "queries": 3, "heads": 4, "beta": 0.0},
            },
        },
        "data": by_turns("SPTS STPP SSPT PTTP"),
        "trainer": {"max_steps": 4},
    }
    (tmp_path / "scenes.yaml").write_text(yaml.safe_dump(config))
    return "--config", str(tmp_path / "scenes.yaml"), *NO_DROPOUT


@pytest.mark.parametrize("strategy", ["ddp", "zero3"])
def test_ranks_with_and_without_geometry(fit, ranks, metric, weights, options, tmp_path, strategy):
    one, two = tmp_path / "one", tmp_path / "two"
    fit(one, *options, "--data.batch_size", "4")
    ranks(
        two,
        *options,
        "--data.batch_size",
        "1",
        "--trainer.accumulate_grad_batches",
        "2",
        "--trainer.strategy",
        strategy,
    )
    assert metric(two) == pytest.approx(metric(one), abs=1e-5)
    assert metric(two, "grad_norm") == pytest.approx(metric(one, "grad_norm"), rel=1e-4)
    assert sum(name.startswith("fusion.") for name in weights(two)) > 20


VIT = {"model_type": "dinov2", "hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2, "image_size": 56}
DEPTH = {
    "model_type": "depth_anything",
    "backbone_config": {**VIT, "patch_size": 14, "out_indices": [1, 2, 3, 4], "reshape_hidden_states": False},
    "reassemble_hidden_size": 16,
    "neck_hidden_sizes": [4, 8, 8, 8],
    "fusion_hidden_size": 8,
    "head_hidden_size": 8,
}
# no parameter is small enough to stay on every rank from step to step
SHARDED = {
    "class_path": "gnomon.train.strategies.Zero",
    "init_args": {"stage": 3, "config": {"zero_optimization": {"stage3_param_persistence_threshold": 0}}},
}


@pytest.fixture
def pictures(demo: Path, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """A source of one conversation over pictures of these sizes, which may be views of one scene without cameras."""

    def make(*sizes: tuple[int, int], scenes: bool = False) -> dict[str, Any]:
        number = len(list(tmp_path.glob("*.jsonl")))
        rng, names = np.random.default_rng(number), [f"{number}-{k}.png" for k in range(len(sizes))]
        for name, (height, width) in zip(names, sizes):
            Image.fromarray(rng.integers(0, 255, (height, width, 3), dtype=np.uint8)).save(tmp_path / name)
        asked = {"from": "human", "value": "<image>" * len(sizes) + "what is A?"}
        row = {"id": str(number), "image": names, "conversations": [asked, {"from": "gpt", "value": "point B 7"}]}
        path = tmp_path / f"{number}.jsonl"
        path.write_text(json.dumps(row))
        args = {"path": str(path), "images": str(tmp_path), "scenes": scenes}
        return {"class_path": "gnomon.data.sources.jsonl.LlavaJson", "init_args": args}

    return make


@pytest.fixture
def like_one(fit, ranks, metric, tmp_path) -> Callable[..., None]:
    """Two processes of two micro-batches each have the losses and gradient norms of one with the whole batch."""

    def compare(config: dict[str, Any], strategy: Any, **options: Any) -> None:
        one, two = tmp_path / "one", tmp_path / "two"
        for run, batch, trainer in ((one, 8, {}), (two, 2, {"strategy": strategy, "accumulate_grad_batches": 2})):
            config["data"]["batch_size"], config["trainer"] = batch, {"max_steps": 3, **options, **trainer}
            (tmp_path / f"{run.name}.yaml").write_text(yaml.safe_dump(config))
        fit(one, "--config", str(tmp_path / "one.yaml"), *NO_DROPOUT)
        ranks(two, "--config", str(tmp_path / "two.yaml"), *NO_DROPOUT)
        assert metric(two) == pytest.approx(metric(one), abs=1e-5)
        assert metric(two, "grad_norm") == pytest.approx(metric(one, "grad_norm"), rel=1e-4)

    return compare


# under ddp nothing is gathered in the middle of a step
@pytest.mark.parametrize(
    ("strategy", "frozen"),
    [(SHARDED, True), (SHARDED, False), ("fsdp2", False)],
    ids=["frozen", "zero3", "fsdp2"],
)
def test_cameras_are_known_of_some_scenes_only(by_turns, pictures, like_one, strategy, frozen):
    data = by_turns("SSSSSSSS PTSTSSSS TTTTPPPP")
    sources = data["train"]["init_args"]["sources"]
    for i in (1, 6, 12, 13):
        sources[i] = pictures((64, 64), (64, 64), scenes=True)
    geometry = {"class_path": "gnomon.vlm.geometry.depth_only.DepthOnly", "init_args": {"config": DEPTH}}
    geometry["init_args"] |= {"frozen": frozen}
    fusion = {"class_path": "gnomon.vlm.fusion.gated.Gated", "init_args": {"align": "interp"}}
    trained = ["connector.*", "lm.*", "fusion.*", *([] if frozen else ["geometry.model.backbone.encoder.*"])]
    recipe = {"class_path": "gnomon.train.recipes.sft.SFT", "init_args": {"rates": dict.fromkeys(trained, 3e-3)}}
    like_one({"model": {"geometry": geometry, "fusion": fusion}, "data": data, "recipe": recipe}, strategy)


@pytest.mark.parametrize("strategy", [SHARDED, "fsdp2"], ids=["zero3", "fsdp2"])
def test_pictures_have_sizes_of_their_own(by_turns, pictures, like_one, strategy):
    data = by_turns("PPPPPPPP PPTTPPPP TTTTPPPP")
    sources = data["train"]["init_args"]["sources"]
    for i in (1, 6, 7, 8, 20):
        sources[i] = pictures((32, 64))
    sources[12] = pictures((64, 32), (32, 64), (48, 32))
    like_one({"model": {"image_size": None, "image_fit": "native"}, "data": data}, strategy)


@pytest.mark.parametrize("strategy", [SHARDED, "fsdp2"], ids=["zero3", "fsdp2"])
def test_validation_sees_pictures_on_one_rank_only(by_turns, like_one, metric, tmp_path, strategy):
    data = by_turns("PPPPPPPP PPPPPPPP TTTTPPPP")
    sources = data["train"]["init_args"]["sources"]
    held_out = [sources[i] for i in (0, 1, 16, 17, 18, 19, 2, 3, 4, 5, 6, 7)]
    data["val"] = {**data["train"], "init_args": {"sources": held_out}}
    like_one({"model": {}, "data": data}, strategy, val_check_interval=1)
    assert metric(tmp_path / "two", "val_loss") == pytest.approx(metric(tmp_path / "one", "val_loss"), abs=1e-5)
