"""One stage that trains everything, or just what is named."""

from __future__ import annotations

import pytest
import torch

from gnomon.train.recipes.base import Stage
from gnomon.train.recipes.sft import SFT


def test_everything_is_trained_by_default():
    (stage,) = SFT(lr=3e-4).stages()
    assert stage.rates == {"*": 3e-4}


@pytest.mark.parametrize("rate", [-1.0, float("nan"), float("inf")])
def test_a_rate_that_climbs_or_ends_nowhere_is_refused(rate):
    with pytest.raises(
        ValueError, match=rf"stage sft: learning rate {rate} of lm\.\* is negative or not finite; use 0"
    ):
        SFT(rates={"connector.*": 1e-3, "lm.*": rate}).stages()
    with pytest.raises(ValueError, match=r"stage align: learning rate .* of fusion\.\*"):
        Stage("align", {"connector.*": 0.0}, beside={"fusion.*": rate})


@pytest.mark.timeout(60)
@pytest.mark.parametrize(("pattern", "moving"), [("*", {"encoder", "connector", "lm"}), ("connector.*", {"connector"})])
def test_what_is_named_moves_and_nothing_else(fit, weights, tmp_path, pattern, moving):
    fit(tmp_path / "start", "--recipe.lr", "0", "--trainer.max_steps", "1")
    fit(tmp_path / "end", "--recipe.rates", f"{{'{pattern}': 0.001}}", "--trainer.max_steps", "3")
    start, end = weights(tmp_path / "start"), weights(tmp_path / "end")
    moved = {name for name in start if not torch.equal(start[name], end[name])}
    assert {name.split(".")[0] for name in moved} == moving
    assert moved == {name for name in start if name.split(".")[0] in moving}
