"""The kernels for attention rows and columns: interpreted, and compiled for GPUs that need not be there."""

from pathlib import Path

import pytest
import torch

from gnomon.kernels.triton_ops.aot import CAPABILITIES, SHARED_LIMIT, report
from gnomon.kernels.triton_ops.scores import builds

RUN = Path(__file__).with_name("interpreted_scores.py")

SHIPPED = {
    "class token": {"rows": 1},
    "text queries, capped": {"rows": 32, "sight": "limits", "segments": True, "capped": True, "weighted": True},
    "all queries": {"rows": 576},
    "masked": {"rows": 576, "sight": "mask"},
}


def fits(dtype: torch.dtype, width: int, capability: int, which: str) -> None:
    for build in builds(dtype, width, **SHIPPED[which]):
        found = report(build, capability)
        assert found.spills == 0, f"{build.kernel.__name__}: {found}"
        assert found.shared <= SHARED_LIMIT[capability], f"{build.kernel.__name__}: {found}"


def test_equals_the_matrix(apart):
    apart(RUN, interpret=True)


@pytest.mark.gpu
def test_equals_the_matrix_on_a_gpu(apart):
    apart(RUN, interpret=False)


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_compiles(capability):
    fits(torch.bfloat16, 128, capability, "text queries, capped")


@pytest.mark.slow
@pytest.mark.parametrize("which", SHIPPED)
# the last one is all heads of an encoder side by side
@pytest.mark.parametrize("width", [64, 80, 128, 1152])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("capability", CAPABILITIES)
def test_all_that_is_shipped_compiles(capability, dtype, width, which):
    fits(dtype, width, capability, which)
