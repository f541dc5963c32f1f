"""Throughput: the FLOPs that a batch is worth, so that speed can be told as a share of what the machine can do.

Counted are the matrix products of non-padding tokens, forward and backward; recomputation is not useful work. A
linear map costs 2 x weights per token forwards, as much again for its input's gradient where something upstream is
trained, and as much again for its weight's gradient where it is trained itself. Attention costs 4 H d per visible key
and query, three times where gradient passes. What operators and mixers do between their linear maps is left out.

Shapes: B rows, T tokens, I images, N visual tokens, H heads, d head width.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gnomon.vlm.layout import Batch, TokenLayout
from gnomon.vlm.model import VLM

# Dense bfloat16 FLOP/s by the name that the driver reports; the first match counts.
_PEAKS = {
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "H200": 989e12,
    "GH200": 989e12,
    "B200": 2250e12,
    "A100": 312e12,
    "A10": 125e12,
    "L40S": 362e12,
    "L4": 121e12,
}


@dataclass(frozen=True)
class Cost:
    """FLOPs of one pass forwards, and of forwards and backwards together."""

    forward: float = 0.0
    total: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.forward + other.forward, self.total + other.total)

    def __mul__(self, times: float) -> Cost:
        return Cost(self.forward * times, self.total * times)


class Flops:
    """Counts for one model as it is frozen at this moment; keeps no reference to its weights."""

    def __init__(self, vlm: VLM) -> None:
        self._encoder, self._connector = _skeleton(vlm.encoder), _skeleton(vlm.connector)
        self._images: dict[tuple[int, int], Cost] = {}
        upstream = any(p.requires_grad for part in (vlm.encoder, vlm.connector) for p in part.parameters())
        causal = vlm.lm.model
        upstream = upstream or any(p.requires_grad for p in causal.get_input_embeddings().parameters())
        linears = [m for layer in vlm.lm.layers for m in layer.modules() if isinstance(m, nn.Linear)]
        self._token = sum((_linear(m, 1, upstream) for m in linears), Cost())
        self._head = _linear(causal.get_output_embeddings(), 1, upstream)
        config = causal.config
        width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        trained = upstream or any(p.requires_grad for p in vlm.lm.layers.parameters())
        self._key = _passed(4.0 * config.num_attention_heads * width, trained)
        other = {*vlm.lm.operators, *vlm.lm.mixed}
        self._windows = [window for index, window in enumerate(vlm.lm.windows) if index not in other]

    def __call__(self, batch: Batch) -> float:
        """Useful FLOPs of training on this batch."""
        return sum(self.parts(batch).values(), Cost()).total

    def parts(self, batch: Batch) -> dict[str, Cost]:
        """The same, where they are spent."""
        return {
            "vision": sum((self.image(p.shape[1], p.shape[2]) for p in batch.pixels), Cost()),
            "lm": self._token * int(batch.layout.visible.sum()),
            "attention": sum((self._key * _pairs(batch.layout, window) for window in self._windows), Cost()),
            "head": self._head * batch.supervised,
        }

    @torch.no_grad()
    def image(self, height: int, width: int) -> Cost:
        """Encoder and connector on one image."""
        if (height, width) not in self._images:
            trace = _Trace(self._encoder, self._connector)
            with trace:
                features = self._encoder(torch.empty(1, 3, height, width, device="meta"))
                self._connector({"vision": features})
            self._images[height, width] = trace.cost
        return self._images[height, width]


def peak(device: torch.device, precision: str) -> float | None:
    """FLOP/s that this device has in this precision; None where we do not know it."""
    if device.type != "cuda" or "bf16" not in precision:
        return None
    name = torch.cuda.get_device_name(device)
    return next((speed for known, speed in _PEAKS.items() if known in name), None)


class _Trace:
    """While open, adds up what linear maps, convolutions and attention blocks of the modules compute."""

    def __init__(self, *modules: nn.Module) -> None:
        self.cost = Cost()
        self._upstream = False
        self._modules = modules
        self._handles: list[Any] = []

    def __enter__(self) -> None:
        for root in self._modules:
            self._handles += [module.register_forward_hook(self._see) for module in root.modules()]

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()

    def _see(self, module: nn.Module, inputs: tuple, output: Any) -> None:
        if isinstance(module, nn.Linear):
            self.cost += _linear(module, output.numel() // module.out_features, self._upstream)
        elif isinstance(module, nn.Conv2d):
            self.cost += _linear(module, output.numel() // module.out_channels, self._upstream)
        elif isinstance(getattr(module, "head_dim", None), int) and isinstance(getattr(module, "num_heads", None), int):
            tokens = (output[0] if isinstance(output, tuple) else output).shape[-2]
            self.cost += _passed(4.0 * module.num_heads * module.head_dim * tokens**2, self._upstream)
        self._upstream = self._upstream or any(p.requires_grad for p in module.parameters(recurse=False))


def _linear(module: nn.Linear | nn.Conv2d, places: int, upstream: bool) -> Cost:
    forward = 2.0 * module.weight.numel() * places
    return Cost(forward, forward * (1 + upstream + module.weight.requires_grad))


def _passed(forward: float, gradient: bool) -> Cost:
    return Cost(forward, forward * (3 if gradient else 1))


def _pairs(layout: TokenLayout, window: int | None) -> int:
    """Pairs of a query and a key that it sees: causal, within a document, within the window."""
    seen = layout.visible.long().cumsum(1)
    if layout.document is not None:
        begins = F.pad(layout.document[:, 1:] != layout.document[:, :-1], (1, 0), value=True)
        seen = seen - torch.where(begins, seen - 1, 0).cummax(1).values
    seen = seen[layout.visible]
    return int((seen if window is None else seen.clamp(max=window)).sum())


def _skeleton(module: nn.Module) -> nn.Module:
    """The module without its weights: copied onto the meta device, which computes shapes alone."""
    hollow: dict[int, Tensor] = {}
    for p in module.parameters():
        hollow[id(p)] = nn.Parameter(torch.empty_like(p, device="meta"), requires_grad=p.requires_grad)
    for b in module.buffers():
        hollow[id(b)] = torch.empty_like(b, device="meta")
    # not a deep copy of the module itself: a part's __new__ wants the constructor's arguments
    copied = object.__new__(type(module))
    copied.__dict__ = copy.deepcopy(module.__dict__, memo=hollow)
    return copied
