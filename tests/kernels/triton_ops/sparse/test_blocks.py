"""The block-sparse kernels, run by Triton's interpreter and compiled for GPUs that need not be there."""

from pathlib import Path

import pytest

from gnomon.kernels.triton_ops.aot import CAPABILITIES, SHARED_LIMIT, report
from gnomon.kernels.triton_ops.sparse.blocks import builds

RUN = Path(__file__).with_name("interpreted_blocks.py")

SHIPPED = {
    "mask": {"block": (64, 64), "partial": True},
    "choice": {"block": (64, 64)},
    "choice and linear branch": {"block": (64, 64), "feature": True},
    "4 heads a key": {"block": (4, 64), "group": 4, "causal": True},
    "16 heads a key": {"block": (16, 64), "group": 16, "causal": True},
}


def fits(dtype: str, width: int, capability: int, which: str) -> None:
    how = dict(SHIPPED[which])
    if how.pop("feature", False):
        how["feature"] = width
    for build in builds(dtype, width, **how):
        found = report(build, capability)
        assert found.spills == 0, f"{build.kernel.__name__}: {found}"
        assert found.shared <= SHARED_LIMIT[capability], f"{build.kernel.__name__}: {found}"


def test_equals_the_references(apart):
    apart(RUN, interpret=True)


@pytest.mark.gpu
def test_equals_the_references_on_a_gpu(apart):
    apart(RUN, interpret=False)


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_compiles(capability):
    fits("bf16", 64, capability, "choice and linear branch")


@pytest.mark.slow
@pytest.mark.parametrize("which", SHIPPED)
@pytest.mark.parametrize("width", [64, 128])
@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
@pytest.mark.parametrize("capability", CAPABILITIES)
def test_all_that_is_shipped_compiles(capability, dtype, width, which):
    fits(dtype, width, capability, which)
