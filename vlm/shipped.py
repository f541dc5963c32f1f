"""What comes with the package: `configs:NAME` in place of a path."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

PREFIX = "configs:"


def place(name: str) -> Path:
    """Where the package's configs have it, or would; a namespace package may stand for several directories."""
    places = [Path(folder) / name for folder in import_module("gnomon.configs").__path__]
    return next((found for found in places if found.exists()), places[0])


def resolve(path: str) -> Path:
    """A path as it is, and of `configs:NAME` the place in the package."""
    return place(path.removeprefix(PREFIX)) if path.startswith(PREFIX) else Path(path)
