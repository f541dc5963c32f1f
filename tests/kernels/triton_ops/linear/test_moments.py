"""Core M's kernels, run by Triton's interpreter and compiled for GPUs that need not be there."""

from pathlib import Path

import pytest
import torch

from gnomon.kernels.triton_ops.aot import CAPABILITIES, Build
from gnomon.kernels.triton_ops.linear.moment_kernels import builds

RUN = Path(__file__).with_name("interpreted_moments.py")

SHIPPED = {
    "inline": {"readout": "shifted"},
    "mala": {"readout": "mala", "feature": "elu1"},
    "mala turned": {"readout": "mala", "feature": "elu1", "turned": True},
    "rala turned": {"readout": "quotient", "feature": "elu1", "turned": True, "gates": (True, False)},
    "l2vit, 4 heads a key": {"readout": "clamped", "feature": "relu", "group": 4},
    "lina": {"readout": "quotient", "feature": "relu", "gates": (True, True)},
    "nalaformer": {"readout": "quotient", "kept": True},
    "nalaformer turned": {"readout": "quotient", "kept": True, "turned": True},
}


def shipped(dtype: torch.dtype, width: int, which: str) -> list[Build]:
    """NaLaFormer's features are twice as wide."""
    return builds(dtype, (2 * width if "nalaformer" in which else width, width), **SHIPPED[which])


def test_equals_the_references(apart):
    apart(RUN, interpret=True)


@pytest.mark.gpu
def test_equals_the_references_on_a_gpu(apart):
    apart(RUN, interpret=False)


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_compiles(fits, capability):
    fits(shipped(torch.bfloat16, 64, "mala turned"), capability)


@pytest.mark.slow
@pytest.mark.parametrize("which", SHIPPED)
@pytest.mark.parametrize("width", [32, 64, 72, 128])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("capability", CAPABILITIES)
def test_all_that_is_shipped_compiles(fits, capability, dtype, width, which):
    fits(shipped(dtype, width, which), capability)
