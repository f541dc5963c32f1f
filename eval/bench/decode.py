"""Speed of a model with and without reduction: the same prompts, kernels and minutes for all of them.

What is timed begins behind the encoder and ends with the last new token: connector, choosing, placing, layers, head.
Repetitions are interleaved, so that a slow moment of the machine meets everyone, and speed-ups are taken within each.
"""

from __future__ import annotations

import gc
import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from copy import copy
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from gnomon.eval.bench.synthetic import prompt
from gnomon.eval.cost import peak_memory
from gnomon.eval.flops import Decoder
from gnomon.vlm.decoder import DecodeState
from gnomon.vlm.generate import now
from gnomon.vlm.layer_reduction import LayerReduction
from gnomon.vlm.layout import Batch, TokenLayout
from gnomon.vlm.model import VLM, Seen
from gnomon.vlm.plan import ReductionPlan
from gnomon.vlm.reduction.base import ReduceContext, Stage, TokenReducer

UNREDUCED = "unreduced"


@dataclass
class Measured:
    """One setting on prompts with `visual` tokens. Lists have one number per repetition, in seconds; sizes in bytes.

    lengths   tokens that each layer gets in the prefill, text included
    cached    tokens whose keys and values each layer keeps; none, where a mixer has a memory instead
    flops     of the prefill: layers by formula, and all that is done besides (connector, scores, merging) as counted
    causal    the same, where of a layer's attention only the half counts that causal kernels compute
    besides   what is done besides the layers
    choosing  seconds for scores and plans, in further runs
    """

    setting: str
    visual: int
    text: int
    rows: int
    lengths: list[int]
    cached: list[int]
    flops: int
    causal: int
    besides: int
    cache_bytes: int
    peak: int | None = None
    prefill: list[float] = field(default_factory=list)
    first_token: list[float] = field(default_factory=list)
    decode: list[float] = field(default_factory=list)
    choosing: list[float] = field(default_factory=list)
    tokens: int = 0

    @property
    def kept(self) -> float:
        """Visual tokens per layer on average, as a share of those that there were."""
        return (sum(self.lengths) / len(self.lengths) - self.text) / self.visual

    @property
    def decode_rate(self) -> float:
        return self.rows * self.tokens / median(self.decode)


@torch.no_grad()
def measure(
    model: VLM,
    settings: dict[str, Sequence[TokenReducer]],
    *,
    visual: int,
    text: int = 64,
    new: int = 16,
    rows: int = 1,
    repeats: int = 5,
) -> list[Measured]:
    """All settings, and the unreduced model before them, on one prompt of random numbers."""
    for name, reducers in settings.items():
        _check(name, reducers)
    settings = {UNREDUCED: (), **settings}
    needs = frozenset(need for reducers in settings.values() for r in reducers for need in r.needs)
    batch, seen = prompt(model, rows=rows, visual=visual, text=text, needs=needs)
    # all rows are alike
    every = batch.layout
    one = TokenLayout(every.kind[:1], every.image[:1], every.cell[:1], every.position[..., :1, :])
    shape, found, own = Decoder.of(model.lm, one), [], model.reducers
    try:
        for name, reducers in settings.items():
            model.reducers = list(reducers)
            lengths, besides = _count(model, batch, seen)
            state = model.lm.new_state()
            model.read(batch, state, seen)
            cached = [0 if cache.keys is None else cache.keys.shape[2] for cache in state.layers]
            flops, causal = (besides + rows * shape.prefill(lengths, causal=half) for half in (False, True))
            found.append(
                Measured(name, visual, text, rows, lengths, cached, flops, causal, besides, _cache_bytes(state))
            )
        for _ in range(repeats):
            for result, reducers in zip(found, settings.values()):
                model.reducers = list(reducers)
                _time(model, batch, seen, new, result)
        for result, reducers in zip(found, settings.values()):
            model.reducers = list(reducers)
            if reducers:
                result.choosing = [_choosing(model, batch, seen) for _ in range(min(3, repeats))]
    finally:
        model.reducers = own
    return found


def _check(name: str, reducers: Sequence[TokenReducer]) -> None:
    for reducer in reducers:
        if reducer.stage in (Stage.PIXEL, Stage.VIT_LAYER):
            raise ValueError(
                f"{name} acts inside the encoder, which this bench leaves out; use gnomon evaluate --reduce"
            )


def _time(model: VLM, batch: Batch, seen: list[Seen], new: int, result: Measured) -> None:
    """One prefill and `new` tokens after it."""
    lm, device = model.lm, batch.ids.device
    gc.collect()
    _forget_peak(device)
    state, start = lm.new_state(), now(device)
    read = model.read(batch, state, seen)
    filled = now(device)
    token = lm.head(read.hidden[:, -1]).argmax(-1)
    first = now(device)
    for step in range(1, new):
        at = TokenLayout.text(len(token), 1, device=device)
        at = replace(at, position=read.before.position[..., -1:] + step)
        token = lm.head(lm(lm.embed(token[:, None]), at, state)[:, -1]).argmax(-1)
    end = now(device)
    result.prefill.append(filled - start)
    result.first_token.append(first - start)
    result.decode.append(end - first)
    result.tokens = new - 1
    peak = peak_memory(device) if device.type == "cuda" else _peak_of_process()
    result.peak = None if peak is None else max(peak, result.peak or 0)


def _count(model: VLM, batch: Batch, seen: list[Seen]) -> tuple[list[int], int]:
    """Tokens that each layer gets, and the FLOPs of all that is done outside the layers."""
    lengths: list[int] = []
    hooks = [
        layer.register_forward_pre_hook(lambda _, inputs: lengths.append(inputs[0].shape[1]))
        for layer in model.lm.layers
    ]
    try:
        with FlopCounterMode(display=False) as counter:
            model.read(batch, model.lm.new_state(), seen)
    finally:
        for hook in hooks:
            hook.remove()
    counted = {name: sum(kinds.values()) for name, kinds in counter.get_flop_counts().items()}
    layer = re.compile(rf"{type(model.lm).__name__}\.model\.model\.layers\.\d+")
    return lengths, counted["Global"] - sum(flops for name, flops in counted.items() if layer.fullmatch(name))


class _Timed(LayerReduction):
    """Knows how long choosing took."""

    seconds = 0.0

    def choose(self, *args: Any) -> list[tuple[Tensor, Tensor, ReductionPlan]]:
        start = now(self.device)
        chosen = super().choose(*args)
        self.seconds += now(self.device) - start
        return chosen


def _choosing(model: VLM, batch: Batch, seen: list[Seen]) -> float:
    """Seconds for the scores and plans of one prefill."""
    device, spent, own = batch.ids.device, [], model.reducers

    def timed(plan: Callable[[ReduceContext], ReductionPlan], ctx: ReduceContext) -> ReductionPlan:
        start = now(device)
        made = plan(ctx)
        spent.append(now(device) - start)
        return made

    inside = [r for r in own if r.stage is Stage.LLM_LAYER]
    outside = [copy(r) for r in own if r.stage is not Stage.LLM_LAYER]
    for reducer in outside:
        reducer.plan = partial(timed, reducer.plan)
    reduction = _Timed(inside, samples=batch.samples, probe=model.lm, depth=len(model.lm.layers))
    reduction.device = device
    model.reducers = outside
    embeds, layout, _ = model.embed(batch, seen)
    if inside:
        model.lm(embeds, layout, model.lm.new_state(), reduction)
    return sum(spent) + reduction.seconds


def _cache_bytes(state: DecodeState) -> int:
    return sum(tensor.nbytes for cache in state.layers for tensor in cache.remembered)


def _forget_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        # only Linux has the file, and not every container lets it be written
        with suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")


def _peak_of_process() -> int | None:
    """Most memory of the process since the peak was last forgotten."""
    with suppress(OSError):
        found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
        return None if found is None else int(found[1]) * 1024
    return None
