"""What answering cost: tokens, seconds and memory, from the records alone."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from gnomon.eval.record import Record


@dataclass(frozen=True)
class Cost:
    """Totals and rates of a run. Seconds are those inside the model; batches share theirs evenly among their items.

    prefill_rate, decode_rate   tokens per second
    """

    items: int
    prompt_tokens: float
    visual_tokens: float
    generated_tokens: float
    seconds: float
    items_per_second: float
    prefill_rate: float
    decode_rate: float


def summarise(records: Sequence[Record]) -> Cost:
    """Token figures are means per item."""
    n = len(records)
    prompt = sum(r.prompt_tokens for r in records)
    generated = sum(r.generated_tokens for r in records)
    prefill = sum(r.seconds_prefill for r in records)
    decode = sum(r.seconds_decode for r in records)
    return Cost(
        items=n,
        prompt_tokens=prompt / n if n else 0.0,
        visual_tokens=sum(r.visual_tokens for r in records) / n if n else 0.0,
        generated_tokens=generated / n if n else 0.0,
        seconds=prefill + decode,
        items_per_second=_rate(n, prefill + decode),
        prefill_rate=_rate(prompt, prefill),
        decode_rate=_rate(generated, decode),
    )


def _rate(amount: float, seconds: float) -> float:
    return amount / seconds if seconds > 0 else 0.0


def peak_memory(device: torch.device) -> int | None:
    """Most bytes in use so far: of the device where it counts them, else of this process; None where nobody does."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        # absent on Windows
        import resource
    except ImportError:
        return None
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # macOS counts bytes, Linux kibibytes
    return most if sys.platform == "darwin" else most * 1024
