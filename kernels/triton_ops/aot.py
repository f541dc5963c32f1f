"""Compile a kernel for a GPU that is not there, and read from the binary what it takes of one.

    build = Build(kernel, types={"x": "*bf16", "n": "i32"}, constants={"BLOCK": 64}, warps=4, stages=2)
    report(build, 90)          Report(registers=64, spills=0, shared=16384)

Needs no GPU: Triton brings the assembler and the disassembler along.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

CAPABILITIES = (80, 90, 100)

SHARED_LIMIT = {80: 163 * 1024, 86: 99 * 1024, 89: 99 * 1024, 90: 227 * 1024, 100: 227 * 1024, 120: 99 * 1024}
"""Bytes of shared memory that one block of threads may have, by compute capability (CUDA's programming guide)."""


@cache
def constant_names(kernel: JITFunction) -> set[str]:
    """A kernel's `tl.constexpr` arguments, whether it is compiled or interpreted."""
    return {name for name, kind in kernel.fn.__annotations__.items() if "constexpr" in str(kind)}


@dataclass(frozen=True)
class Build:
    """One specialisation of a kernel: what its launch passes.

    types      of the arguments that are no constants: "*bf16", "*i32", "i32", "fp32"; pointers count as aligned to 16
    constants  its `tl.constexpr` arguments
    registers  that a thread may have; None: what the assembler likes
    """

    kernel: JITFunction
    types: Mapping[str, str]
    constants: Mapping[str, object]
    warps: int = 4
    stages: int = 2
    registers: int | None = None

    def __post_init__(self) -> None:
        missing = constant_names(self.kernel) - set(self.constants)
        assert not missing, f"{self.kernel.__name__}: {sorted(missing)} are constants and have no value"


@dataclass(frozen=True)
class Report:
    """registers and spills per thread (spills in bytes of its stack), shared memory per block in bytes."""

    registers: int
    spills: int
    shared: int


def report(build: Build, capability: int) -> Report:
    """Compile for sm_<capability>; a kernel that does not compile raises what the compiler says."""
    names = build.kernel.arg_names
    missing = set(names) ^ (set(build.types) | set(build.constants))
    assert not missing, f"{build.kernel.__name__}: types and constants differ from its arguments in {sorted(missing)}"
    aligned = {(names.index(name),): [["tt.divisibility", 16]] for name, t in build.types.items() if t[0] == "*"}
    source = ASTSource(
        fn=build.kernel,
        signature={name: build.types.get(name, "constexpr") for name in names},
        constexprs=dict(build.constants),
        attrs=aligned,
    )
    options = {"num_warps": build.warps, "num_stages": build.stages, "maxnreg": build.registers}
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    found = _usage(compiled.asm["cubin"])
    return Report(found["REG"], found["STACK"] + found["LOCAL"], compiled.metadata.shared)


def _usage(cubin: bytes) -> dict[str, int]:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "kernel.cubin"
        file.write_bytes(cubin)
        # the one that triton ships; its knobs, which name it too, are not older than 3.4
        tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
        told = subprocess.run(
            [str(tool), "--dump-resource-usage", str(file)],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
    return {name: int(value) for name, value in re.findall(r"\b(REG|STACK|LOCAL):(\d+)", told)}
