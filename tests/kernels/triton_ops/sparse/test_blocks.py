"""The block-sparse kernels, run by Triton's interpreter and compiled for GPUs that need not be there."""

from collections.abc import Iterable
from itertools import product
from pathlib import Path

import pytest
import torch

from gnomon.kernels.mask import CAUSAL, EVERYTHING
from gnomon.kernels.masks.grid import windows
from gnomon.kernels.masks.tokens import Tokens
from gnomon.kernels.op import Shape
from gnomon.kernels.sparse import infllm_v2, neighborhood, sla
from gnomon.kernels.triton_ops.aot import CAPABILITIES, Build
from gnomon.kernels.triton_ops.sparse.blocks import builds

RUN = Path(__file__).with_name("interpreted_blocks.py")

SHIPPED = {
    "mask": {"block": (64, 64), "partial": True},
    "choice": {"block": (64, 64)},
    "choice and linear branch": {"block": (64, 64), "feature": True},
    "choice in blocks of 128": {"block": (128, 128), "feature": True},
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


@pytest.mark.parametrize(
    "op, bound",
    [
        (neighborhood.OP, windows((3, 3)).on(Tokens.grid(6, 6))),
        (sla.OP, EVERYTHING.on(Tokens.line(36))),
        (infllm_v2.OP, CAUSAL.on(Tokens.line(36))),
    ],
    ids=["neighborhood", "sla", "infllm_v2"],
)
@pytest.mark.parametrize(
    "dtype, width, why",
    [
        (torch.bfloat16, 256, None),
        (torch.float16, 257, "heads are 257 wide, the kernels take 256 in float16"),
        (torch.float32, 128, None),
        (torch.float32, 129, "heads are 129 wide, the kernels take 128 in float32"),
    ],
)
def test_heads_too_wide_for_a_gpu_are_left_to_others(op, bound, dtype, width, why):
    shape = Shape(1, 36, 36, 2, 2, 16, width, op is infllm_v2.OP, dtype, torch.device("cuda"))
    chosen = op.choose("auto", shape, bound)
    assert chosen.passed_over.get("triton") == why
    assert (chosen.used == "triton") == (why is None)


@pytest.mark.parametrize("which", ["mask", "choice and linear branch", "4 heads a key"])
@pytest.mark.parametrize("capability", CAPABILITIES)
def test_compiles(fits, capability, which):
    fits(shipped("bf16", 64, which), capability)


@pytest.mark.slow
@pytest.mark.parametrize("which", SHIPPED)
@pytest.mark.parametrize("dtype, width", [*product(["bf16", "fp16"], [64, 72, 128, 256]), ("fp32", 64), ("fp32", 128)])
@pytest.mark.parametrize("capability", CAPABILITIES)
def test_all_that_is_shipped_compiles(fits, capability, dtype, width, which):
    fits(shipped(dtype, width, which), capability)
