"""Results of `gnomon bench kernels` as Markdown and as JSON, written while they come."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from gnomon.eval.bench.kernels import Timing
from gnomon.eval.record import write_text
from gnomon.kernels.analysis.roofline import Device

COLUMNS = (
    "operator", "implementation", "T", "density", "forward ms", "with backward ms", "a token ms", "x dense",
    "x dense with backward", "x dense a token",
    "TFLOP/s", "GB/s", "of the floor", "passes", "error", "",
)  # fmt: skip

NOTE = """\
Times are the fastest call's, of five at least; of calls over 0.5 s of three, beyond --patience the only one.
Density: pairs that a sparse operator sees, as a share of those of dense attention of the same causality (of SLA, by its
softmax alone).
A token: the last one alone, with the state that the others left (dense attention: with their keys and values).
x dense: how many times faster than dense attention (SDPA, of the same causality) at that length.
TFLOP/s and GB/s: what the algorithm must do and move at least (of patterns: the pairs they let through), by the forward
time, which for peers is theirs. Of the floor: the time that the slowest of operations, bytes and exponentials needs at
the measured ceilings, as a share of the forward time. Passes: over the keys. Error: largest difference from the float64
reference at 256 tokens, as a share of the largest number; of the output and, where the backward is timed, of the
gradients of q, k and v; what is wrong is not timed. Operators that see everything at that length are checked with
smaller sizes, too."""


class Report:
    """What has been measured; in a folder, in kernels.json after every line and, at the end, in kernels.md."""

    def __init__(self, folder: Path | None, about: Mapping[str, Any], peak: Device) -> None:
        self.folder, self.about, self.peak = folder, about, peak
        self.timings: list[Timing] = []
        self.head = head(about, peak)
        if folder is not None:
            self._write("kernels.json", plain(about, peak, []))

    def add(self, timing: Timing) -> str:
        self.timings.append(timing)
        if self.folder is not None:
            self._write("kernels.json", plain(self.about, self.peak, self.timings))
        return line(timing)

    def close(self) -> None:
        if self.folder is not None:
            lines = [self.head, *map(line, self.timings)]
            self._write("kernels.md", "\n".join(lines) + "\n")

    def _write(self, name: str, text: str) -> None:
        assert self.folder is not None
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_text(self.folder / name, text)
        except OSError as error:
            raise ValueError(f"{self.folder / name} cannot be written ({error.strerror}); use another --out") from error


def head(about: Mapping[str, Any], peak: Device) -> str:
    told = ", ".join(f"{name} {value}" for name, value in about.items())
    top = (
        f"Ceilings as measured: {peak.operations / 1e12:.3g} TFLOP/s, {peak.bytes / 1e9:.3g} GB/s, "
        f"{peak.exponentials / 1e9:.3g} G exponentials/s."
    )
    rule = ["---", "---"] + ["---:"] * (len(COLUMNS) - 3) + ["---"]
    lines = ["# gnomon bench kernels", "", told, "", top, "", NOTE, "", _row(COLUMNS), _row(rule)]
    return "\n".join(lines)


def line(timing: Timing) -> str:
    t = timing
    return _row(
        (
            t.operator + (", causal" if t.causal else ""),
            t.implementation,
            f"{t.length:,}",
            "" if t.density is None else f"{t.density:.3g}",
            _number(t.forward, 1e3),
            _number(t.both, 1e3),
            _number(t.step, 1e3),
            _ratio(t.dense_forward, t.forward),
            _ratio(t.dense_both, t.both),
            _ratio(t.dense_step, t.step),
            "" if t.forward is None or t.operations is None else f"{t.operations / t.forward / 1e12:.3g}",
            "" if t.forward is None or t.bytes is None else f"{t.bytes / t.forward / 1e9:.3g}",
            "" if t.forward is None or t.floor is None else f"{100 * t.floor / t.forward:.0f} %",
            "" if t.passes is None else str(t.passes),
            "" if t.error is None else f"{t.error:.1g}",
            t.note.replace("|", "/"),
        )
    )


def plain(about: Mapping[str, Any], peak: Device, timings: Sequence[Timing]) -> str:
    data = {**about, "ceilings": asdict(peak), "results": [asdict(timing) for timing in timings]}
    return json.dumps(data, indent=1) + "\n"


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _number(seconds: float | None, factor: float) -> str:
    return "" if seconds is None else f"{factor * seconds:.3g}"


def _ratio(slow: float | None, fast: float | None) -> str:
    return "" if slow is None or fast is None else f"{slow / fast:.2f}"
