"""Precision: what weights and arithmetic are in. Depth and cameras that a batch holds stay float32: in bfloat16 a
principal point of 56.3 pixels is 56.25, and pixel 300 has its centre on its edge.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

from lightning import Trainer
from lightning.pytorch.plugins.precision import HalfPrecision


def check(precision: Any, *, option: str) -> None:
    """A ValueError for what does not train."""
    if str(precision).startswith("16"):
        raise ValueError(f"{option} {precision} overflows in training; use bf16-mixed, bf16-true or 32-true")


def keep_inputs(trainer: Trainer) -> Trainer:
    """The same trainer, which casts weights alone. Of DeepSpeed's strategies `strategies.ZeroPrecision` sees to it."""
    plugin = trainer.precision_plugin
    if isinstance(plugin, HalfPrecision):
        trainer.strategy.precision_plugin = _Half(plugin.precision)
    return trainer


class _Half(HalfPrecision):
    """Modules cast what they look at to their weights' dtype, in evaluations as here."""

    def convert_input(self, data: Any) -> Any:
        return data

    def forward_context(self) -> AbstractContextManager:
        # Lightning's makes half precision torch's default, and so that of planes and pixel centres
        return nullcontext()
