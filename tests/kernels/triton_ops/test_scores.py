"""The kernels for attention rows and columns: interpreted, and compiled for GPUs that need not be there."""

from pathlib import Path

import pytest
import torch

from gnomon.kernels.triton_ops.aot import CAPABILITIES
from gnomon.kernels.triton_ops.scores import builds

RUN = Path(__file__).with_name("interpreted_scores.py")

SHIPPED = {
    "class token": {"rows": 1},
    "text queries, capped": {"rows": 32, "sight": "limits", "segments": True, "capped": True, "weighted": True},
    "all queries": {"rows": 576},
    "masked": {"rows": 576, "sight": "mask"},
}


def test_equals_the_matrix(apart):
    apart(RUN, interpret=True)


@pytest.mark.gpu
def test_equals_the_matrix_on_a_gpu(apart):
    apart(RUN, interpret=False)


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_compiles(fits, capability):
    fits(builds(torch.bfloat16, 128, **SHIPPED["text queries, capped"]), capability)


@pytest.mark.slow
@pytest.mark.parametrize("which", SHIPPED)
# the last one is all heads of an encoder side by side
@pytest.mark.parametrize("width", [64, 80, 128, 1152])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("capability", CAPABILITIES)
def test_all_that_is_shipped_compiles(fits, capability, dtype, width, which):
    fits(builds(dtype, width, **SHIPPED[which]), capability)
