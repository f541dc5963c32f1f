"""What fits a signature passes; what does not is refused with the value, its type and what is wanted."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from gnomon.kernels.sparse.neighborhood import rule
from gnomon.kernels.typed import typed


@typed
def taken(
    a: int = 1, b: float = 1, c: bool = True, d: str = "", e: Sequence[int] | None = None, f: Tensor | float = 0
) -> int:
    """Its words."""
    return a


@pytest.mark.parametrize(
    "given",
    [
        {"a": np.int64(3)},
        {"b": 2, "f": 0.5},
        {"b": np.float32(2)},
        {"e": (1, 2)},
        {"e": [np.int32(1)]},
        {"e": None},
        {"e": torch.zeros(2, 3).shape},
        {"f": torch.nn.Parameter(torch.ones(1))},
    ],
)
def test_what_fits(given: dict[str, object]):
    assert taken(**given) == given.get("a", 1)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"a": 2.0}, "test_typed: a 2.0 is of type float; give an integer"),
        ({"a": True}, "test_typed: a True is of type bool; give an integer"),
        ({"b": "2"}, "test_typed: b '2' is of type str; give a number"),
        ({"c": 1}, "test_typed: c 1 is of type int; give True or False"),
        ({"e": "12"}, "test_typed: e '12' is of type str; give a sequence of integers or None"),
        ({"e": [1, 2.5]}, "test_typed: e [1, 2.5] is of type list; give a sequence of integers or None"),
        ({"f": [1.0]}, "test_typed: f [1.0] is of type list; give a tensor or a number"),
    ],
)
def test_what_does_not(given: dict[str, object], words: str):
    with pytest.raises(ValueError) as told:
        taken(**given)
    assert str(told.value) == words


def test_in_order_and_long():
    with pytest.raises(ValueError, match=r"^test_typed: b tensor[^\n]{,60} is of type Tensor; give a number$"):
        taken(1, torch.rand(40, 40))
    with pytest.raises(ValueError, match=r"^neighborhood: window 3 is of type int; give a sequence of integers$"):
        rule((4, 4), 3)


def test_what_it_keeps():
    assert (taken.__name__, taken.__doc__) == ("taken", "Its words.")
    with pytest.raises(TypeError, match="unexpected keyword argument 'z'"):
        taken(z=1)


def test_compiled():
    """In one graph."""

    def total(x: Tensor) -> Tensor:
        return x * taken(f=x, e=x.shape)

    assert torch.compile(total, fullgraph=True, backend="eager")(torch.ones(2)).tolist() == [1, 1]
