"""MATHGLANCE: see a mathematical diagram; letters for what and how many, a box for where.

Paper:   MATHGLANCE: Multimodal Large Language Models Do Not Know Where to Look in Mathematical Diagrams.
         arXiv:2503.20745
Rule:    multiple choice by letter; grounding is right when the box overlaps the reference with IoU >= 0.65
Differs: letters are read by our own parser, which never guesses; boxes are the last four numbers of the answer
"""

from __future__ import annotations

from gnomon.eval.answer import box, strict_choice, tagged
from gnomon.eval.benchmark import Score
from gnomon.eval.metrics import Box, iou

THRESHOLD = 0.65


def choice(raw: str, *, reference: str, options: dict[str, str]) -> Score:
    letter = strict_choice(raw, options)
    return Score(float(letter == reference), letter)


def word(raw: str, *, reference: str) -> Score:
    """Without options the answer has to be the name, whole and alone."""
    found = tagged(raw).strip().rstrip(".").strip('"').lower()
    return Score(float(found == reference.lower()), found or None)


def grounding(raw: str, *, reference: Box) -> Score:
    found = box(tagged(raw))
    if found is None:
        return Score(0.0, None, {"iou": 0.0})
    overlap = iou(found, reference)
    return Score(float(overlap >= THRESHOLD), ", ".join(f"{side:g}" for side in found), {"iou": overlap})
