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


def test_what_it_is_stands_in_the_log_and_what_it_lacks_is_told(fit, metric, options, by_turns, tmp_path):
    said = fit(tmp_path / "some", *options, "--data.batch_size", "4")
    assert min(metric(tmp_path / "some", "aux/0/OLA")[:3]) > 0 and "warning" not in said
    (tmp_path / "none.yaml").write_text(yaml.safe_dump({"data": by_turns("PPTT")}))
    said = fit(tmp_path / "none", *options, "--config", str(tmp_path / "none.yaml"), "--trainer.max_steps", "2")
    assert metric(tmp_path / "none", "aux/0/OLA") == [0, 0]
    assert said.count("warning: the auxiliary loss OLA is 0 up to step") == 1


def test_one_that_no_stage_trains_is_refused(fit, options, tmp_path):
    recipe = ("--recipe", "gnomon.train.recipes.llava15.LLaVA15")
    said = fit(tmp_path / "run", *options, *recipe, code=2)
    assert "the auxiliary loss OLA is new and no stage trains any of its" in said and "add aux.*" in said
