"""Tangram: count the elements of a diagram; right or wrong, with the size of the error beside it.

Paper:   Tangram: Benchmark for Evaluating Geometric Element Recognition in Large Multimodal Models. arXiv:2408.13854
Rule:    exact match of the first number in the answer (thinking removed) with the count
Differs: absolute error and "at most one off" are diagnostics of ours; an answer without a number has no absolute error
"""

from __future__ import annotations

from gnomon.eval.answer import lmms_number, tagged
from gnomon.eval.benchmark import Score


def strict(raw: str, *, reference: int) -> Score:
    number = lmms_number(tagged(raw))
    if number is None:
        return Score(0.0, None, {"off_by_one": 0.0})
    error = abs(number - reference)
    return Score(float(error == 0), f"{number:g}", {"absolute_error": error, "off_by_one": float(error <= 1)})
