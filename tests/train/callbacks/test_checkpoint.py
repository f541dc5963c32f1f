"""A checkpoint that cannot be written does no harm to the one before it."""

from __future__ import annotations

import resource
import signal

import pytest

from gnomon.train.callbacks.checkpoint import Checkpoint, complete, newest
from gnomon.train.module import StageModule

pytestmark = pytest.mark.timeout(120)


def fill_disk() -> None:
    """From now on no file may grow beyond a few kilobytes, which is how a full disk looks to a writer."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))


def test_full_disk_is_one_line_and_the_last_checkpoint_survives(fit, forked, on_call, tmp_path):
    run = tmp_path / "run"
    code, said = forked(run, change=lambda: on_call(StageModule, "on_save_checkpoint", 2, fill_disk))
    assert code == 1
    assert "no space left" in said.splitlines()[-1] and "step-00000002 is intact" in said and "Traceback" not in said
    assert [path.name for path in (run / "checkpoints" / "sft").iterdir()] == ["step-00000002"]
    fit(run, "--resume")


def test_only_the_newest_are_kept(fit, tmp_path):
    fit(tmp_path / "run", "--checkpoint.every", "1", "--checkpoint.keep", "3")
    found = complete(tmp_path / "run" / "checkpoints" / "sft")
    assert [path.name for path in found] == ["step-00000004", "step-00000005", "step-00000006"]


def test_partial_ones_are_not_found(tmp_path):
    (tmp_path / "step-00000004.partial").touch()
    assert newest(tmp_path) is None
    (tmp_path / "step-00000002").touch()
    assert newest(tmp_path).name == "step-00000002"


def test_refuses_to_keep_none(tmp_path):
    with pytest.raises(ValueError, match="0 kept"):
        Checkpoint(tmp_path, every=1, keep=0)
