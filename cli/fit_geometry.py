"""`gnomon fit-geometry`: the training, and the measuring of what came of it."""

from __future__ import annotations

from gnomon.eval.geometry.measure import measured
from gnomon.train.geometry.cli import main as fit


def main(argv: list[str]) -> int:
    return fit(argv, measure=measured)
