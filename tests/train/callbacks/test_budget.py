"""A budget in minutes becomes a number of steps that a resumed run keeps."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

from gnomon.train.callbacks import budget
from gnomon.train.schedule import Schedule

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


@pytest.mark.parametrize(
    "seconds",
    [lambda step: 6.0 if step <= 10 else 0.15, lambda step: 1.0 if step % 4 == 0 else 0.1, lambda step: 0.15],
    ids=["stalls at first", "never steady", "steady"],
)
def test_a_slow_start_is_not_taken_for_the_whole(monkeypatch, tmp_path, seconds):
    """Steps are counted until the plan is fulfilled; that takes about as long as it was to."""
    clock = 0.0
    monkeypatch.setattr(budget.time, "monotonic", lambda: clock)
    loop = SimpleNamespace(max_steps=budget.ENDLESS)
    trainer = SimpleNamespace(
        global_step=0,
        is_global_zero=True,
        strategy=SimpleNamespace(broadcast=lambda value: value),
        fit_loop=SimpleNamespace(epoch_loop=loop),
    )
    module = SimpleNamespace(boundary=True, schedule=Schedule(warmup=budget.TIMED, total=budget.ENDLESS))
    callback = budget.Budget(280, tmp_path / "plan.json")
    callback.on_train_start(trainer, module)
    while trainer.global_step < loop.max_steps and clock < 1000:
        trainer.global_step += 1
        clock += seconds(trainer.global_step)
        callback.on_train_batch_end(trainer, module)
    assert 270 < clock < 290 and module.schedule.total == loop.max_steps
