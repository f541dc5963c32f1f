"""The way into an operator: which implementations are there."""

import sys
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace

import pytest
import torch

from gnomon.kernels.linear.plain import plain
from gnomon.kernels.op import interpreting, recording


@pytest.fixture
def triton(monkeypatch):
    """In the place of triton, a module that has nothing."""
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    module = ModuleType("triton")
    module.__spec__ = ModuleSpec("triton", None)
    monkeypatch.setitem(sys.modules, "triton", module)
    return module


@pytest.mark.parametrize("value", [None, "0", "1"])
def test_interpreting_as_triton_without_knobs_does(triton, monkeypatch, value):
    """Before 3.4, which is what torch 2.6 and 2.7 bring, triton reads its environment itself."""
    if value is not None:
        monkeypatch.setenv("TRITON_INTERPRET", value)
    assert interpreting() == (value == "1")


@pytest.mark.parametrize("value", [False, True])
def test_interpreting_as_the_knobs_say(triton, value):
    triton.knobs = SimpleNamespace(runtime=SimpleNamespace(interpret=value))
    assert interpreting() == value


def test_without_knobs_the_twins_are_passed_over(triton):
    q = torch.randn(1, 5, 1, 4)
    with recording() as choices:
        plain(q, q, q)
    assert choices[0].used == "chunk" and "triton is not interpreting" in choices[0].passed_over["triton"]
