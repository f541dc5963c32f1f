"""What is given to a function is of the kinds that its signature states, or is refused in one line."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import wraps
from inspect import signature
from numbers import Integral, Real
from reprlib import repr as shortened
from types import NoneType, UnionType
from typing import Literal, ParamSpec, TypeVar, Union, get_args, get_origin, get_type_hints

from torch import Tensor

from gnomon.kernels.checks import refuse

_P, _R = ParamSpec("_P"), TypeVar("_R")

_OF_THEIR_OWN = {"mask", "scale", "state", "cu_seqlens"}
"""`Op.run` says more about these."""

_WORDS = {
    int: ("an integer", "integers"),
    float: ("a number", "numbers"),
    bool: ("True or False", "True or False"),
    str: ("a string", "strings"),
    Tensor: ("a tensor", "tensors"),
    NoneType: ("None", "None"),
}


def typed(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """For functions of integers, numbers, bools, strings, tensors, sequences of them and literals."""
    names = list(signature(function).parameters)
    kinds = {name: kind for name, kind in get_type_hints(function).items() if name not in _OF_THEIR_OWN}
    where = function.__module__.rpartition(".")[2]

    @wraps(function)
    def call(*given: _P.args, **named: _P.kwargs) -> _R:
        for name, value in (*zip(names, given), *named.items()):
            if name in kinds and not fits(value, kinds[name]):
                why = f"{name} {' '.join(shortened(value).split())} is of type {type(value).__name__}"
                raise refuse(where, why, f"give {words(kinds[name])}")
        return function(*given, **named)

    return call


def fits(value: object, kind: object) -> bool:
    """Whether a value is of a kind that a signature states; an integer is a number, and True is none."""
    if get_origin(kind) is Literal:
        return isinstance(value, str) and value in get_args(kind)
    if get_origin(kind) in (Union, UnionType):
        return any(fits(value, one) for one in get_args(kind))
    if get_origin(kind) in (Sequence, tuple):
        inside = get_args(kind)[0]
        return isinstance(value, Sequence) and not isinstance(value, str) and all(fits(one, inside) for one in value)
    if kind in (int, float):
        return isinstance(value, Integral if kind is int else Real) and not isinstance(value, bool)
    return isinstance(value, kind)


def words(kind: object, several: bool = False) -> str:
    """What to give."""
    if get_origin(kind) is Literal:
        return " or ".join(map(repr, get_args(kind)))
    if get_origin(kind) in (Union, UnionType):
        return " or ".join(words(one) for one in get_args(kind))
    if get_origin(kind) in (Sequence, tuple):
        return f"a sequence of {words(get_args(kind)[0], True)}"
    return _WORDS[kind][several]
