"""Benchmarks by name: each file of `benchmarks/` is one, so adding a file is all it takes."""

from __future__ import annotations

import importlib
import inspect
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from gnomon.eval.benchmark import Benchmark


def known() -> list[str]:
    return sorted(path.stem for path in (Path(__file__).parent / "benchmarks").glob("*.py"))


def check(kind: str, name: str, names: list[str]) -> None:
    """A ValueError that suggests the nearest name."""
    if name not in names:
        close = get_close_matches(name, names, n=1, cutoff=0.5)
        hint = f"did you mean {close[0]!r}?" if close else f"choose from {', '.join(names)}"
        raise ValueError(f"{kind} {name!r} is unknown; {hint}")


def benchmark_class(name: str) -> type[Benchmark]:
    check("benchmark", name, known())
    module = importlib.import_module(f"gnomon.eval.benchmarks.{name}")
    (found,) = [
        each
        for each in vars(module).values()
        if isinstance(each, type) and issubclass(each, Benchmark) and each.__module__ == module.__name__
    ]
    return found


def make(name: str, options: dict[str, Any], *, defaults: dict[str, Any]) -> Benchmark:
    """The benchmark with the options that were given, and such defaults as it has; an option it lacks is an error."""
    cls = benchmark_class(name)
    accepted = inspect.signature(cls.__init__).parameters
    for option in options:
        if option not in accepted:
            raise ValueError(f"benchmark {name!r} has no option --{option.replace('_', '-')}; leave it out")
    return cls(**{key: value for key, value in defaults.items() if key in accepted} | options)
