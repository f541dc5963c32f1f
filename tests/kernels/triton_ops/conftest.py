"""Triton reads TRITON_INTERPRET when it is first imported, and by then some other test may have done that.

So the tests that run kernels stand in files interpreted_*.py, which pytest does not collect by itself; a test beside
each runs it in a process of its own, interpreted on the CPU or, where there is one, compiled on a GPU.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.fixture
def apart():
    def run(file: Path, *, interpret: bool) -> None:
        environment = {**os.environ, "TRITON_INTERPRET": str(int(interpret))}
        command = [sys.executable, "-m", "pytest", "-q", "--import-mode=importlib", "-p", "no:cacheprovider", str(file)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr

    return run
