from __future__ import annotations

import json

import pytest

from gnomon.train.rundir import RunDir, differences
from gnomon.train.runlog import RunLog, read


def test_differences_name_the_option_and_pass_over_what_is_free():
    old = {"data": {"batch_size": 4, "workers": 0}, "recipe": {"init_args": {"lr": 1.0}}}
    new = {"data": {"batch_size": 8, "workers": 2}, "recipe": {"init_args": {"lr": 1.0, "rates": {"lm.*": 2.0}}}}
    assert list(differences(old, new)) == ["data.batch_size: 4 -> 8", "recipe.init_args.rates.lm.*: None -> 2.0"]


def test_an_existing_run_is_neither_replaced_nor_changed_by_accident(tmp_path):
    run = RunDir(tmp_path / "run")
    run.check_new(overwrite=False)
    with pytest.raises(ValueError, match="no run to resume"):
        run.check_resumable({}, accept_changes=True)
    run.begin({"a": 1}, resume=False)
    with pytest.raises(ValueError, match="--overwrite"):
        run.check_new(overwrite=False)
    with pytest.raises(ValueError, match="a: 1 -> 2"):
        run.check_resumable({"a": 2}, accept_changes=False)
    run.check_resumable({"a": 1}, accept_changes=False)
    run.check_resumable({"a": 2}, accept_changes=True)


def test_a_directory_of_something_else_is_never_replaced(tmp_path):
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(ValueError, match="is not a run"):
        RunDir(tmp_path).check_new(overwrite=True)


def test_log_forgets_what_a_resumed_run_does_again(tmp_path):
    log = RunLog(tmp_path, "sft")
    for step in range(1, 5):
        log.log_metrics({"loss": 1.0 / step}, step=step)
    log.log_metrics({"val_loss": 0.5}, step=4)
    with log.lines.open("a") as file:
        file.write('{"stage": "sft", "st')
    log.rewind(2)
    log.log_metrics({"loss": 9.0}, step=3)
    assert [(row["step"], row["loss"]) for row in read(log.lines)] == [(1, 1.0), (2, 0.5), (3, 9.0)]
    assert log.table.read_text().splitlines() == ["stage,step,loss", "sft,1,1.0", "sft,2,0.5", "sft,3,9.0"]
    assert all(json.loads(line) for line in log.lines.read_text().splitlines())
