"""Scenes: choices by letter or in words, numbers by mean relative accuracy.

Paper:   Thinking in Space: How Multimodal Large Language Models See, Remember, and Recall Spaces (VSI-Bench).
         arXiv:2412.14171
Rule:    a choice is right or wrong; a number earns the share of the thresholds 0.50, 0.55, ..., 0.95 of relative
         accuracy that it meets
Differs: an error of just 1 - threshold meets it, as in VSI-Bench's code and not in its paper's formula; our
         parsers, which never guess, read the answer: a letter, or the choice itself, whole and alone; of numbers, the
         first one after the thinking; an exact hit and the relative error are diagnostics beside the score
"""

from __future__ import annotations

from gnomon.eval.answer import lettered, lmms_number, strict_choice, tagged
from gnomon.eval.benchmark import Score
from gnomon.eval.metrics import mra


def choice(raw: str, *, reference: str, choices: list[str]) -> Score:
    letter = strict_choice(raw, lettered(choices))
    return Score(float(letter == reference), letter)


def word(raw: str, *, reference: str) -> Score:
    found = tagged(raw).strip().rstrip(".").strip('"').lower()
    return Score(float(found == reference.lower()), found or None)


def number(raw: str, *, reference: float) -> Score:
    found = lmms_number(tagged(raw))
    if found is None:
        return Score(0.0, None, {"exact": 0.0})
    error = abs(found - reference) / reference
    return Score(mra(found, reference), f"{found:g}", {"exact": float(found == reference), "relative_error": error})
