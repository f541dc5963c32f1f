"""RunDir: what a run leaves on the disk, and the rules by which an existing one is gone on with.

config.resolved.yaml  environment.json  metrics.jsonl  metrics.csv
checkpoints/<stage>/step-*          everything needed to go on
stages/<name>/model/  done.json     what a finished stage hands to the next
model/                              what the last stage leaves
"""

from __future__ import annotations

import json
import platform
import shutil
import sys
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
import yaml

_PACKAGES = ("gnomon", "torch", "transformers", "lightning", "deepspeed", "timm", "numpy")

# Options that say how a run is watched or served, not what it computes; they may change when it is resumed.
_FREE = ("data.workers", "trainer.log_every_n_steps", "checkpoint.", "loggers", "max_minutes", "trainer.callbacks")


class RunDir:
    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    @property
    def config(self) -> Path:
        return self.path / "config.resolved.yaml"

    def stage(self, name: str) -> Path:
        return self.path / "stages" / name

    def checkpoints(self, name: str) -> Path:
        return self.path / "checkpoints" / name

    def model(self, name: str, *, last: bool) -> Path:
        """Where a stage's model goes."""
        return self.path / "model" if last else self.stage(name) / "model"

    def finished(self, name: str) -> bool:
        return (self.stage(name) / "done.json").is_file()

    def check_new(self, *, overwrite: bool) -> None:
        """Refuse a directory that holds anything, unless it is a run that may be overwritten."""
        if not self.path.exists() or (self.path.is_dir() and not any(self.path.iterdir())):
            return
        if not self.config.is_file():
            raise ValueError(f"{self.path} exists and is not a run; give another directory with --out")
        if not overwrite:
            raise ValueError(
                f"{self.path} holds a run; go on with it (--resume), replace it (--overwrite), or give another --out"
            )

    def check_resumable(self, config: dict[str, Any], *, accept_changes: bool) -> None:
        """Refuse another configuration than the one that the run was begun with, unless told to accept it."""
        if not self.config.is_file():
            raise ValueError(f"{self.path} holds no run to resume; start one without --resume")
        changes = list(differences(yaml.safe_load(self.config.read_text()), config))
        if changes and not accept_changes:
            shown = "; ".join(changes[:6]) + (f"; and {len(changes) - 6} more" if len(changes) > 6 else "")
            raise ValueError(
                f"{self.path} was begun with another configuration: {shown}; resume with --accept_changes to take it"
            )

    def begin(self, config: dict[str, Any], *, resume: bool) -> None:
        """Write down what is about to run; a new run starts with an empty directory."""
        if not resume and self.path.exists():
            shutil.rmtree(self.path)
        self.path.mkdir(parents=True, exist_ok=True)
        self.config.write_text(yaml.safe_dump(config, sort_keys=False))
        environment = {
            "command": sys.argv,
            "python": platform.python_version(),
            "platform": platform.platform(),
            "packages": {name: _version(name) for name in _PACKAGES},
            "devices": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        }
        (self.path / "environment.json").write_text(json.dumps(environment, indent=2) + "\n")

    def finish(self, name: str, report: dict[str, Any]) -> None:
        """Mark a stage as finished, after its model is safely on the disk."""
        target = self.stage(name) / "done.json"
        target.parent.mkdir(parents=True, exist_ok=True)
        draft = target.with_suffix(".partial")
        draft.write_text(json.dumps(report, indent=2) + "\n")
        draft.rename(target)


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[str]:
    """What changed between two configurations, option by option, leaving out what may change freely."""
    before, after = dict(_flat(old)), dict(_flat(new))
    for key in dict.fromkeys([*before, *after]):
        if before.get(key) != after.get(key) and not key.startswith(_FREE):
            yield f"{key}: {before.get(key)} -> {after.get(key)}"


def _flat(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
