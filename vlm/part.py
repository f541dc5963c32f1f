"""Part: a plug-in that remembers how it was made, so that a model directory can make it again."""

from __future__ import annotations

import importlib
import inspect
from typing import Any, TypeVar

T = TypeVar("T")


class Part:
    """Mix-in that records the constructor's arguments; `spec()` and `build()` are inverse to each other."""

    init_args: dict[str, Any]

    def __new__(cls, *args: Any, **kwargs: Any):
        self = super().__new__(cls)
        # partial: copying calls __new__ without arguments and restores them afterwards
        bound = inspect.signature(cls.__init__).bind_partial(self, *args, **kwargs)
        # object's own setter: nn.Module's would want its __init__ to have run
        object.__setattr__(self, "init_args", dict(list(bound.arguments.items())[1:]))
        return self

    def spec(self) -> dict[str, Any]:
        """`{"class_path": ..., "init_args": ...}` in plain types, as YAML and JSON hold it."""
        # JSON knows no tuples, and no sets
        args = {name: list(value) if isinstance(value, tuple) else value for name, value in self.init_args.items()}
        args = {name: sorted(value) if isinstance(value, (set, frozenset)) else value for name, value in args.items()}
        return {"class_path": f"{type(self).__module__}.{type(self).__qualname__}", "init_args": args}


def build(spec: dict[str, Any], family: type[T]) -> T:
    """The plug-in that a spec describes; refuses a class that is not of the family, before calling it."""
    path = spec["class_path"]
    module, _, name = path.rpartition(".")
    try:
        cls = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"class path {path!r} cannot be imported: {error}; install or correct it") from error
    if not (isinstance(cls, type) and issubclass(cls, family)):
        raise ValueError(
            f"class path {path!r} is not a {family.__name__}; name a subclass of {family.__module__}.{family.__name__}"
        )
    try:
        return cls(**spec.get("init_args", {}))
    except TypeError as error:
        raise ValueError(f"{path} refuses its arguments: {error}") from error
