"""A budget in minutes becomes a number of steps that a resumed run keeps."""

from __future__ import annotations

import json

import pytest

pytestmark = pytest.mark.timeout(120)
MINUTES = ("--budget.minutes", "0.08", "--checkpoint.every", "5")


def test_the_plan_is_kept_and_the_cosine_ends(fit, weights, metric, tmp_path):
    run = tmp_path / "run"
    fit(run, *MINUTES)
    plan = json.loads((run / "stages" / "sft" / "plan.json").read_text())
    assert len(metric(run)) == plan["steps"] > 20
    rates = metric(run, "lr")
    assert rates[19] == max(rates) and rates[-1] < 0.1 * rates[19]
    assert json.loads((run / "stages" / "sft" / "done.json").read_text())["steps"] == plan["steps"]


def test_killed_after_planning_goes_on_with_the_same_plan(fit, killed, weights, metric, tmp_path):
    run = tmp_path / "run"
    killed(run, "training_step", 28, *MINUTES)
    plan = (run / "stages" / "sft" / "plan.json").read_text()
    before = metric(run)
    fit(run, *MINUTES, "--resume")
    assert (run / "stages" / "sft" / "plan.json").read_text() == plan
    assert metric(run)[: len(before)] == before and len(metric(run)) == json.loads(plan)["steps"]
