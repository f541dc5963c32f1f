"""Two processes, of which often only one has depth to tell, learn an auxiliary loss as one does."""

from __future__ import annotations

import pytest
import yaml

pytestmark = pytest.mark.timeout(180)


@pytest.fixture
def options(by_turns, tmp_path) -> tuple[str, ...]:
    """Scenes, pictures and text by turns, four to a step: both ranks, the first, the second or none have scenes."""
    small = {"layers": [0, 1], "grid": [2, 2], "heads": 2, "head_width": 4}
    config = {
        "model": {"aux": [{"class_path": "gnomon.vlm.auxiliary.ola.OLA", "init_args": small}]},
        "data": by_turns("SPTS SSPT PTSP PTTP"),
        "trainer": {"max_steps": 4},
    }
    (tmp_path / "aux.yaml").write_text(yaml.safe_dump(config))
    return "--config", str(tmp_path / "aux.yaml"), "--model.lm.init_args.config.attention_dropout", "0.0"


@pytest.mark.parametrize("strategy", ["ddp", "zero3"])
def test_ranks_with_and_without_targets(fit, ranks, metric, weights, options, tmp_path, strategy):
    one, two = tmp_path / "one", tmp_path / "two"
    fit(one, *options, "--data.batch_size", "4")
    ranks(two, *options, "--data.batch_size", "2", "--trainer.strategy", strategy)
    assert metric(two) == pytest.approx(metric(one), abs=1e-5)
    assert metric(two, "grad_norm") == pytest.approx(metric(one, "grad_norm"), rel=1e-4)
    assert sum(name.startswith("aux.") for name in weights(two)) > 20


def test_a_run_goes_on_with_it_and_a_new_one_begins_without(fit, metric, weights, options, tmp_path):
    straight, halves, after = (tmp_path / name for name in ("straight", "halves", "after"))
    fit(straight, *options, "--data.batch_size", "4")
    fit(halves, *options, "--data.batch_size", "4", "--max_minutes", "0")
    assert len(metric(halves)) == 1
    fit(halves, *options, "--data.batch_size", "4", "--resume")
    assert metric(halves) == metric(straight)
    plain = "--data.batch_size", "4", "--model.aux", "[]", "--trainer.max_steps", "1"
    fit(after, *options, *plain, "--model.checkpoint", str(straight / "model"))
    assert not any(name.startswith("aux.") for name in weights(after))
