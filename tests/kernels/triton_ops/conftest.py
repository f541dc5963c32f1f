"""Triton reads TRITON_INTERPRET when it is first imported, and by then some other test may have done that.

So the tests that run kernels stand in files interpreted_*.py, which pytest does not collect by itself; a test beside
each runs it in a process of its own, interpreted on the CPU or, where there is one, compiled on a GPU.
"""

import os
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from gnomon.kernels.triton_ops.aot import SHARED_LIMIT, Build, report


@pytest.fixture
def poison(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a kernel leaves unwritten shows: memory comes full of NaN."""

    def poisoned(*a: object, plain: Callable[..., Tensor], **how: object) -> Tensor:
        x = plain(*a, **how)
        return x.fill_(torch.nan) if x.is_floating_point() else x

    for owner, name in ((torch, "empty"), (torch, "empty_like"), (Tensor, "new_empty")):
        plain = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda *a, plain=plain, **how: poisoned(*a, plain=plain, **how))


@pytest.fixture
def apart():
    def run(file: Path, *, interpret: bool) -> None:
        environment = {**os.environ, "TRITON_INTERPRET": str(int(interpret))}
        command = [sys.executable, "-m", "pytest", "-q", "--import-mode=importlib", "-p", "no:cacheprovider", str(file)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr

    return run


@pytest.fixture
def fits() -> Callable[[Iterable[Build], int], None]:
    """Compiles kernels for a GPU that need not be there: they spill nothing and keep to its shared memory."""

    def check(builds: Iterable[Build], capability: int) -> None:
        for build in builds:
            found = report(build, capability)
            assert found.spills == 0, f"{build.kernel.__name__}: {found}"
            assert found.shared <= SHARED_LIMIT[capability], f"{build.kernel.__name__}: {found}"

    return check
