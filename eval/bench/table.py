"""Results of `gnomon bench decode` as Markdown, and as plain data with all that they depend on."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from statistics import median
from typing import Any

import torch

from gnomon.eval.bench.decode import Measured

HEAD = (
    "reduction", "N per layer", "prefill ms", "first token ms", "decode tokens/s", "peak MiB", "KV MiB", "GFLOPs",
    "speed-up", "promised", "reached", "promised, full square", "reached", "choosing",
)  # fmt: skip

NOTE = """\
Times are medians behind the encoder, on random features. N per layer: visual tokens that a layer gets on average.
GFLOPs: of the prefill, two per multiply-add, all tokens, attention as the full square, scores and connector included.
Speed-up: of the prefill, by the clock (median over pairs of neighbouring runs). Promised: by FLOPs, once with the half
of the attention that causal kernels compute, once with the full square that papers count; reached: the speed-up as a
share of it. Choosing: scores and plans, in percent of the unreduced prefill."""


def speedups(base: Measured, result: Measured) -> dict[str, float]:
    realised = median(slow / fast for slow, fast in zip(base.prefill, result.prefill))
    causal, square = base.causal / result.causal, base.flops / result.flops
    return {
        "speedup": realised,
        "promised": causal,
        "reached": realised / causal,
        "promised_square": square,
        "reached_square": realised / square,
        "choosing_share": median(result.choosing) / median(base.prefill) if result.choosing else 0.0,
    }


def markdown(results: Sequence[Measured]) -> str:
    """One table for results whose first is the unreduced model."""
    lines = [HEAD, tuple(["---"] + ["---:"] * (len(HEAD) - 1)), *(_cells(results[0], result) for result in results)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cells(base: Measured, result: Measured) -> tuple[str, ...]:
    speed = speedups(base, result)
    plain = result is base
    return (
        result.setting,
        f"{result.kept * result.visual:.0f}",
        f"{1e3 * median(result.prefill):.1f}",
        f"{1e3 * median(result.first_token):.1f}",
        f"{result.decode_rate:.1f}" if result.tokens else "",
        "" if result.peak is None else f"{result.peak / 2**20:.0f}",
        f"{result.cache_bytes / 2**20:.1f}",
        f"{result.flops / 1e9:.1f}",
        *("" if plain else f"{value:.2f}" for value in list(speed.values())[:5]),
        "" if plain else f"{100 * speed['choosing_share']:.1f} %",
    )


def plain(results: Sequence[Measured]) -> list[dict[str, Any]]:
    """As JSON holds it, with what was worked out of it."""
    return [{**asdict(r), "kept": r.kept, **speedups(results[0], r)} for r in results]


def surroundings(device: torch.device) -> dict[str, Any]:
    """The machine and the versions that a speed belongs to."""
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else _processor(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        **{name: _version(name) for name in ("gnomon", "torch", "transformers")},
    }


def _processor() -> str:
    return f"{platform.processor() or platform.machine()}, {torch.backends.cpu.get_cpu_capability()}"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        # run from a source tree that nobody installed
        return "not installed"
