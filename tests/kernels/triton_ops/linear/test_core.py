"""The kernels of the gated delta recurrence, interpreted by Triton and compiled for GPUs that need not be there."""

from pathlib import Path

import pytest
import torch
import triton
import triton.language as tl

from gnomon.kernels.triton_ops.aot import CAPABILITIES
from gnomon.kernels.triton_ops.linear.core import SIZES, Launch, builds

RUN = Path(__file__).with_name("interpreted_core.py")


def test_equals_the_recurrence(apart):
    apart(RUN, interpret=True)


@pytest.mark.gpu
def test_equals_the_recurrence_on_a_gpu(apart):
    apart(RUN, interpret=False)


@triton.jit
def forgotten(q, o, SPARE: tl.constexpr):
    pass


def test_a_launch_fixes_every_constant(monkeypatch):
    """What it does not know it fills with a tensor, and a kernel would be compiled anew for each."""
    monkeypatch.setitem(SIZES, forgotten, (16, 16, 4, 1))
    q = torch.zeros(1, 4, 1, 16)
    call = Launch.of(q, q, q, None, None, torch.zeros(1, 1, 16, 16), 1.0, None)
    with pytest.raises(AssertionError, match=r"forgotten: .*\['SPARE'\]"):
        call(forgotten, {})


@pytest.mark.parametrize(
    "capability, decay, delta", [(80, "none", False), (90, "scalar", True), (100, "vector", False)]
)
def test_compiles(fits, capability, decay, delta):
    fits(builds("bf16", 64, 64, decay=decay, delta=delta), capability)


@pytest.mark.slow
@pytest.mark.parametrize("delta", [False, True])
@pytest.mark.parametrize("decay", ["none", "scalar", "vector"])
@pytest.mark.parametrize("width", [64, 128])
@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
@pytest.mark.parametrize("capability", CAPABILITIES)
def test_all_that_is_shipped_compiles(fits, capability, dtype, width, decay, delta):
    fits(builds(dtype, width, width, decay=decay, delta=delta), capability)
