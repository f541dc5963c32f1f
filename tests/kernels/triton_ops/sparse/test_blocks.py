"""The block-sparse kernels, run by Triton's interpreter and compiled for GPUs that need not be there."""

from collections.abc import Iterable
from pathlib import Path

import pytest

from gnomon.kernels.triton_ops.aot import CAPABILITIES, Build
from gnomon.kernels.triton_ops.sparse.blocks import builds

RUN = Path(__file__).with_name("interpreted_blocks.py")

SHIPPED = {
    "mask": {"block": (64, 64), "partial": True},
    "choice": {"block": (64, 64)},
    "choice and linear branch": {"block": (64, 64), "feature": True},
    "4 heads a key": {"block": (4, 64), "group": 4, "causal": True},
    "16 heads a key": {"block": (16, 64), "group": 16, "causal": True},
}


def shipped(dtype: str, width: int, which: str) -> Iterable[Build]:
    how = dict(SHIPPED[which])
    if how.pop("feature", False):
        how["feature"] = width
    return builds(dtype, width, **how)


def test_equals_the_references(apart):
    apart(RUN, interpret=True)


@pytest.mark.gpu
def test_equals_the_references_on_a_gpu(apart):
    apart(RUN, interpret=False)


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_compiles(fits, capability):
    fits(shipped("bf16", 64, "choice and linear branch"), capability)


@pytest.mark.slow
@pytest.mark.parametrize("which", SHIPPED)
@pytest.mark.parametrize("width", [64, 128])
@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
@pytest.mark.parametrize("capability", CAPABILITIES)
def test_all_that_is_shipped_compiles(fits, capability, dtype, width, which):
    fits(shipped(dtype, width, which), capability)
