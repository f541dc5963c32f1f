"""Ctrl-C and time limits end a run between two steps; what is resumed is the same run."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.timeout(120)
LONG = ("--trainer.max_steps", "40")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_saves_and_says_how_to_go_on(fit, forked, weights, tmp_path, number):
    run = tmp_path / "run"

    def interrupt(child: int) -> None:
        while not (run / "metrics.jsonl").is_file():
            time.sleep(0.01)
        os.kill(child, number)

    code, said = forked(run, *LONG, change=lambda: None, watch=interrupt)
    assert code == 130 and f"--out {run} --resume" in said
    assert not (run / "model").exists()
    fit(run, *LONG, "--resume")
    fit(tmp_path / "straight", *LONG)
    first, second = weights(tmp_path / "straight"), weights(run)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_time_limit_ends_cleanly(fit, tmp_path: Path):
    said = fit(tmp_path / "run", *LONG, "--max_minutes", "0.001")
    assert "time is up" in said and list((tmp_path / "run" / "checkpoints" / "sft").glob("step-*"))


def test_a_signal_to_all_processes_of_a_run_leaves_its_workers_at_work(command, environment, tmp_path):
    """As `timeout` and schedulers send it."""
    run = tmp_path / "run"
    options = ("--data.workers", "1", "--trainer.max_steps", "4000")
    process = subprocess.Popen(
        command(run, *options), env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    while not (run / "metrics.jsonl").is_file() and process.poll() is None:
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGTERM)
    said = process.communicate()[1]
    assert process.returncode == 130 and f"--out {run} --resume" in said, said
    assert "Traceback" not in said and list((run / "checkpoints" / "sft").glob("step-*"))
