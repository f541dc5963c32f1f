"""Two processes, of which often only one has geometry in its batch, train as one does and do not wait forever."""

from __future__ import annotations

import pytest
import yaml

pytestmark = pytest.mark.timeout(180)


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
