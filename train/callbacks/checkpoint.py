"""Checkpoint: everything a run needs to go on, written so that a crash at any moment leaves the last one whole."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path
from typing import Any

from lightning import Callback, LightningModule, Trainer

from gnomon.train.errors import Stopped

_PARTIAL = ".partial"


class Checkpoint(Callback):
    """Saves every `every` optimizer steps and keeps the newest `keep`.

    A checkpoint is written under another name, flushed to disk, renamed, and only then are older ones deleted.
    """

    def __init__(self, folder: Path, *, every: int, keep: int = 2) -> None:
        if every < 1 or keep < 1:
            raise ValueError(f"checkpoints every {every} steps, {keep} kept: both must be 1 or more")
        self.folder, self.every, self.keep = folder, every, keep

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, *_: Any) -> None:
        if module.boundary and trainer.global_step % self.every == 0:
            self.save(trainer)

    def save(self, trainer: Trainer, *, step: int | None = None) -> Path:
        """Save now; collective. `step` names the checkpoint, by default the current one."""
        step = trainer.global_step if step is None else step
        path = self.folder / f"step-{step:08d}"
        if path.exists():
            return path
        partial = path.with_name(path.name + _PARTIAL)
        if trainer.is_global_zero:
            self.folder.mkdir(parents=True, exist_ok=True)
            discard(partial)
        trainer.strategy.barrier("checkpoint")
        try:
            trainer.save_checkpoint(partial)
            flush(partial)
        except (OSError, RuntimeError) as error:
            if not _disk_is_full(error):
                raise
            discard(partial)
            last = newest(self.folder)
            raise Stopped(
                f"no space left on the disk of {self.folder} for the checkpoint of step {step}; "
                f"{f'{last.name} is intact' if last else 'there is none yet'}; free space and run again with --resume"
            ) from error
        trainer.strategy.barrier("checkpoint")
        if trainer.is_global_zero:
            partial.rename(path)
            flush(self.folder)
            for old in complete(self.folder)[: -self.keep]:
                discard(old)
        trainer.strategy.barrier("checkpoint")
        return path


def complete(folder: Path) -> list[Path]:
    """Finished checkpoints, oldest first."""
    return sorted(path for path in folder.glob("step-*") if path.suffix != _PARTIAL)


def newest(folder: Path) -> Path | None:
    return next(reversed(complete(folder)), None)


def flush(path: Path) -> None:
    """Force a file, or a folder and all below it, onto the disk."""
    for item in (path, *(path.rglob("*") if path.is_dir() else ())):
        handle = os.open(item, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def discard(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _disk_is_full(error: BaseException) -> bool:
    if isinstance(error, OSError):
        return error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    # torch's writer reports a short write as a RuntimeError of its own
    return "PytorchStreamWriter failed writing" in str(error) or "unexpected pos" in str(error)
