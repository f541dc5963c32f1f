"""Two processes, of which often only one has geometry in its batch, train as one does and do not wait forever."""

from __future__ import annotations

import pytest
import yaml

pytestmark = pytest.mark.timeout(180)


@pytest.fixture
def options(rows, demo, tmp_path) -> tuple[str, ...]:
    """Scenes, pictures and text by turns, four to a step: the first rank, the second, both or none have scenes."""
    kinds = "SPTS STPP SSPT PTTP"
    path, sources = rows(demo, "singles.jsonl", [kind == "P" for kind in kinds if kind in "PT"]), []
    lines = path.read_text().splitlines()
    for i, kind in enumerate(kinds.replace(" ", "")):
        if kind == "S":
            made = {"count": 1, "seed": i, "size": [64, 64], "tasks": ["nearer"], "prompt": "words"}
            sources.append({"class_path": "gnomon.data.sources.scenes.source.Scenes", "init_args": made})
            continue
        single = demo / f"single-{i}.jsonl"
        single.write_text(lines.pop(0))
        given = {"path": str(single), "images": str(demo)}
        sources.append({"class_path": "gnomon.data.sources.jsonl.LlavaJson", "init_args": given})
    config = {
        "model": {
            "geometry": {"class_path": "gnomon.vlm.geometry.known.Known", "init_args": {"patch": 8, "octaves": 2}},
            "fusion": {
                "class_path": "gnomon.vlm.fusion.geosr_dynamic.GeoSRDynamic",
                "init_args": {"merge": 2, "queries": 3, "heads": 4, "beta": 0.0},
            },
        },
        "data": {
            "train": {"class_path": "gnomon.data.sources.mixture.Mixture", "init_args": {"sources": sources}},
            "shuffle": False,
        },
        "trainer": {"max_steps": 4},
    }
    (tmp_path / "scenes.yaml").write_text(yaml.safe_dump(config))
    return "--config", str(tmp_path / "scenes.yaml"), "--model.lm.init_args.config.attention_dropout", "0.0"


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
