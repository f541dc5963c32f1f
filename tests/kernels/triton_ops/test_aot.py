"""The compile report, on kernels of which the answer is known."""

import pytest
import torch
import triton
import triton.language as tl

from gnomon.kernels.triton_ops.aot import Build, Report, report


@triton.jit
def copy(x, y, n, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(y + at, tl.load(x + at, mask=at < n), mask=at < n)


@triton.jit
def product(x, y, WIDTH: tl.constexpr):
    """(64, 16) times (16, WIDTH)."""
    row, inner, column = tl.arange(0, 64), tl.arange(0, 16), tl.arange(0, WIDTH)
    sums = tl.dot(tl.load(x + row[:, None] * 16 + inner), tl.load(x + inner[:, None] * WIDTH + column))
    tl.store(y + row[:, None] * WIDTH + column, sums)


TYPES = {"x": "*fp32", "y": "*fp32"}


def test_a_copy_needs_nothing():
    found = report(Build(copy, {**TYPES, "n": "i32"}, {"BLOCK": 128}), 90)
    assert found.spills == 0 and found.shared == 0 and 0 < found.registers < 40


def test_triton_without_knobs_brings_the_disassembler_too(monkeypatch):
    monkeypatch.delattr(triton, "knobs")
    assert report(Build(copy, {**TYPES, "n": "i32"}, {"BLOCK": 128}), 80).registers > 0


def test_what_is_too_much_spills_and_takes_shared_memory():
    """One warp of 32 holds 64 x 256 sums: 512 a thread, and a thread has 255 registers."""
    small, large = (report(Build(product, TYPES, {"WIDTH": width}, warps=1), 80) for width in (16, 256))
    assert small.spills == 0 and large.spills > 0
    assert large.shared > small.shared > 0


def test_an_argument_left_out_is_told():
    with pytest.raises(AssertionError, match=r"copy: .*\['n'\]"):
        report(Build(copy, TYPES, {"BLOCK": 128}), 90)


def test_a_constant_among_the_types_is_told():
    with pytest.raises(AssertionError, match=r"copy: .*\['BLOCK'\]"):
        Build(copy, {**TYPES, "n": "i32", "BLOCK": "i32"}, {})


@pytest.mark.gpu
def test_the_report_is_what_the_driver_says():
    x = torch.zeros(128, 128, device="cuda")
    capability = 10 * torch.cuda.get_device_capability()[0] + torch.cuda.get_device_capability()[1]
    compiled = product[(1,)](x, x, WIDTH=32, num_warps=4, num_stages=2)
    compiled._init_handles()
    told = Report(compiled.n_regs, 4 * compiled.n_spills, compiled.metadata.shared)
    assert report(Build(product, TYPES, {"WIDTH": 32}, warps=4, stages=2), capability) == told
