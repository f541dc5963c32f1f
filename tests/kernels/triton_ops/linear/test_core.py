"""The kernels of the gated delta recurrence, interpreted by Triton and compiled for GPUs that need not be there."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import triton
import triton.language as tl

from gnomon.kernels.linear import based, hedgehog
from gnomon.kernels.mask import CAUSAL, bind
from gnomon.kernels.op import Shape
from gnomon.kernels.triton_ops.aot import CAPABILITIES
from gnomon.kernels.triton_ops.linear.core import SIZES_FLOAT32, Launch, builds

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
    monkeypatch.setitem(SIZES_FLOAT32, forgotten, (16, 16, 4, 1))
    q = torch.zeros(1, 4, 1, 16)
    call = Launch.of(q, q, q, None, None, torch.zeros(1, 1, 16, 16), 1.0, None)
    with pytest.raises(AssertionError, match=r"forgotten: .*\['SPARE'\]"):
        call(forgotten, {})


# keys and values of the recurrences of BASED and Hedgehog, which are always of float32
FEATURES = [(153, 65), (128, 65), (256, 129)]


@pytest.mark.parametrize(
    "capability, decay, delta", [(80, "none", False), (90, "scalar", True), (100, "vector", False)]
)
def test_compiles(fits, capability, decay, delta):
    fits(builds("bf16", 64, 64, decay=decay, delta=delta), capability)


def test_float32_compiles(fits):
    """BASED, whose widths are no powers of two, packed."""
    fits(builds("fp32", 153, 65, decay="none", delta=False, packed=True), 80)


@pytest.mark.slow
@pytest.mark.parametrize("delta", [False, True])
@pytest.mark.parametrize("decay", ["none", "scalar", "vector"])
@pytest.mark.parametrize("width", [64, 128, 256])
@pytest.mark.parametrize("dtype", ["bf16", "fp16", "fp32"])
@pytest.mark.parametrize("capability", CAPABILITIES)
def test_all_that_is_shipped_compiles(fits, capability, dtype, width, decay, delta):
    fits(builds(dtype, width, width, decay=decay, delta=delta), capability)


@pytest.mark.slow
@pytest.mark.parametrize("widths", FEATURES, ids=str)
@pytest.mark.parametrize("capability", CAPABILITIES)
def test_recurrences_of_features_compile(fits, capability, widths):
    fits(builds("fp32", *widths, decay="none", delta=False), capability)


@pytest.mark.slow
@pytest.mark.parametrize("decay, delta, how", [
    ("scalar", True, {"packed": True}),
    ("vector", True, {"packed": True, "gates": "bf16"}),
    ("scalar", False, {"learned": False}),
])  # fmt: skip
@pytest.mark.parametrize("capability", CAPABILITIES)
def test_the_rarer_calls_compile(fits, capability, decay, delta, how):
    """Sequences packed, gates as narrow as the keys, and Lightning's, which are not learned."""
    fits(builds("bf16", 128, 128, decay=decay, delta=delta, **how), capability)


@pytest.mark.slow
@pytest.mark.parametrize("decay, delta", [("none", False), ("scalar", False), ("scalar", True), ("vector", True)])
@pytest.mark.parametrize("widths", [(48, 96), (96, 192), (192, 96), (200, 200)], ids=str)
@pytest.mark.parametrize("capability", CAPABILITIES)
def test_widths_that_fill_no_tile_compile(fits, capability, widths, decay, delta):
    fits(builds("fp16", *widths, decay=decay, delta=delta), capability)


@pytest.mark.parametrize("operator, width, launched", [(hedgehog, 256, 512), (based, 22, 276)])
def test_the_width_that_is_launched_counts(operator, width, launched):
    """2 D and 1 + D + D (D + 1) / 2, and not D."""
    narrow = Shape(1, 8, 8, 1, 1, 16, 64, True, torch.bfloat16, torch.device("cuda"))
    mask, refuses = bind(CAUSAL, 8, 8), operator.OP.impls["triton"].refuses
    assert refuses(narrow, mask) is None
    assert f"{launched} wide" in refuses(replace(narrow, width=width), mask)
