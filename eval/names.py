"""Benchmarks and reducers by name: each file of their folders is one, so adding a file is all it takes."""

from __future__ import annotations

import importlib
import inspect
from difflib import get_close_matches
from pathlib import Path
from typing import Any, get_type_hints

import yaml

from gnomon.eval.benchmark import Benchmark
from gnomon.kernels.members import FAMILIES, Member, members
from gnomon.kernels.typed import fits, words
from gnomon.vlm.reduction.base import TokenReducer


def known() -> list[str]:
    return sorted(path.stem for path in (Path(__file__).parent / "benchmarks").glob("*.py"))


def known_reducers() -> list[str]:
    places = [Path(place) for place in importlib.import_module("gnomon.vlm.reduction").__path__]
    return sorted(path.stem for place in places for path in place.glob("*.py") if path.stem != "base")


def check(kind: str, name: str, names: list[str]) -> None:
    """A ValueError that suggests the nearest name."""
    if name not in names:
        close = get_close_matches(name, names, n=1, cutoff=0.5)
        hint = f"did you mean {close[0]!r}?" if close else f"choose from {', '.join(names)}"
        raise ValueError(f"{kind} {name!r} is unknown; {hint}")


def check_drawn(name: str) -> None:
    """A ValueError for what is no benchmark, or one whose questions are in a file."""
    check("benchmark", name, known())
    drawn = [each for each in known() if "rows" not in inspect.signature(benchmark_class(each).__init__).parameters]
    if name not in drawn:
        raise ValueError(
            f"benchmark {name!r} asks what a file holds, and none can be given here; use {' or '.join(drawn)}"
        )


def operators(names: list[str]) -> list[Member]:
    """Attention operators by name or family; without names all of them."""
    found = members()
    for name in names:
        check("operator", name, sorted({member.op.name for member in found} | set(FAMILIES)))
    return [member for member in found if not names or {member.op.name, member.family} & set(names)]


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


def reducers(text: str) -> list[TokenReducer]:
    """`fastv:0.5`, `fastv:0.5,layer=3`, or several with + between them, in the order in which they act."""
    return [_reducer(part.strip()) for part in text.split("+")]


def _reducer(text: str) -> TokenReducer:
    first, *rest = text.split(",")
    name, _, ratio = first.partition(":")
    check("reduction", name, known_reducers())
    module = importlib.import_module(f"gnomon.vlm.reduction.{name}")
    (cls,) = [
        each
        for each in vars(module).values()
        if isinstance(each, type) and issubclass(each, TokenReducer) and each.__module__ == module.__name__
    ]
    accepted = inspect.signature(cls.__init__).parameters
    options = {"ratio": _value(ratio)} if ratio else {}
    for pair in rest:
        key, equals, value = pair.partition("=")
        if not equals or key not in accepted:
            known = ", ".join(option for option in accepted if option != "self")
            raise ValueError(f"reduction {text!r}: {pair!r} is no option of {name}; write OPTION=VALUE with {known}")
        options[key] = _value(value)
    kinds = get_type_hints(cls.__init__)
    for key, value in options.items():
        # a list of one has no slash
        fitting = [given for given in (value, (value,)) if fits(given, kinds[key])]
        if not fitting:
            wanted = words(kinds[key])
            wanted += ", with / between them" if "sequence" in wanted else ""
            raise ValueError(f"reduction {text!r}: {key} {value!r} does not fit; give {wanted}")
        options[key] = fitting[0]
    return cls(**options)


def _value(text: str) -> Any:
    """A number, true, false, or a list with slashes between its items (layers=8/16/24); else the text itself."""
    if "/" in text:
        return tuple(_value(part) for part in text.split("/"))
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        return text
    return value if isinstance(value, (int, float, bool)) else text
