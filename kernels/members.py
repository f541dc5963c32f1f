"""Every operator there is, found by path: a file in a family's folder is its registration."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from gnomon.kernels.op import Op, Result

FAMILIES = ("softmax", "linear", "sparse")


@dataclass(frozen=True)
class Member:
    """An operator and its public function."""

    family: str
    op: Op
    function: Callable[..., Result]


def members() -> list[Member]:
    found = []
    for family in FAMILIES:
        for file in sorted((Path(__file__).parent / family).glob("*.py")):
            module = importlib.import_module(f"gnomon.kernels.{family}.{file.stem}")
            ops = [value for value in vars(module).values() if isinstance(value, Op)]
            found += [Member(family, op, getattr(module, op.name)) for op in ops]
    return found
