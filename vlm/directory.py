"""Directories that appear whole or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError


@contextmanager
def whole(path: Path, *, ours: Callable[[Path], bool]) -> Iterator[Path]:
    """A directory to write into; what stands at `path` is replaced once the block has ended well.

    ours: whether a directory that is not empty is of the kind that may be replaced.
    """
    if path.exists() and not ours(path) and (path.is_file() or any(path.iterdir())):
        raise ValueError(f"{path} exists and is not of the kind to be written; it stays as it is, choose another place")
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.parent / f".{path.name}.draft-{os.getpid()}"
    try:
        draft.mkdir()
        yield draft
        _flush(draft)
        _replace(path, draft)
    except SafetensorError as error:
        raise OSError(f"{path} could not be written ({error}); what was there is unharmed") from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _flush(path: Path) -> None:
    """Onto the disk: a rename may reach it before the data does."""
    for entry in [*path.rglob("*"), path]:
        descriptor = os.open(entry, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _replace(path: Path, draft: Path) -> None:
    if not path.exists():
        draft.rename(path)
        return
    old = draft.with_suffix(".old")
    path.rename(old)
    try:
        draft.rename(path)
    except OSError:
        old.rename(path)
        raise
    shutil.rmtree(old)
