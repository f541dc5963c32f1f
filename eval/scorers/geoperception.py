"""Geoperception: transcribe one fact of a diagram; a partial set of right items earns a part.

Paper:   Euclid: Supercharging Multimodal LLMs with Synthetic High-Fidelity Visual Descriptions. arXiv:2412.08737
Rule:    any item outside the reference scores 0; else distinct items given / distinct items asked for, where two items
         are the same when they use the same letters (BC = CB); acute or obtuse is right or wrong
Differs: `strict` sorts the letters, wants an annotation exactly, and reads the angle's class as a word. `official` has
         the released scorer's defects: "this " counts as "is ", permuted letters are one item only when a set
         happens to list them alike, an annotation is a bag of letters, and any text is acute or obtuse
"""

from __future__ import annotations

import re
from difflib import SequenceMatcher

from gnomon.eval.answer import tagged
from gnomon.eval.benchmark import Score

ANGLES = ("acute", "obtuse")


def strict(raw: str, *, reference: str, predicate: str, question: str) -> Score:
    text = tagged(raw)
    if predicate == "AngleClassification":
        named = {word for word in ANGLES if re.search(rf"\b{word}\b", text, flags=re.I)}
        if len(named) != 1:
            return Score(0.0, None)
        return Score(float(named == {reference}), named.pop())
    items = strict_items(text, annotation=predicate == "Equals")
    if not items:
        return Score(0.0, None)
    wanted = {_canonical(item, predicate) for item in re.split(r",\s*", reference)}
    given = {_canonical(item, predicate) for item in items}
    if predicate == "PointLiesOnLine":
        given -= set(named_line(question))
    value = len(given) / len(wanted) if given <= wanted else 0.0
    return Score(value, ", ".join(items))


def strict_items(text: str, *, annotation: bool = False) -> list[str]:
    """The items of the first line with an answer: what follows its last colon, or its last "is" or "are"."""
    line = next((line for line in text.splitlines() if line.strip()), "").strip().rstrip(".")
    line = re.split(r":\s*|\b(?:is|are)\s+", line)[-1]
    pieces = re.split(r"\s*,\s*(?:and\s+)?|\s+and\s+", line)
    items = [re.sub(r"[\s\"'()°*]|\b(?:lines?|points?|angle)\b", "", piece) for piece in pieces]
    if annotation:
        return [item for item in items if item][:1]
    # names are capital letters; prose is no answer
    return items if all(re.fullmatch(r"[A-Z]+", item) for item in items) else []


def _canonical(item: str, predicate: str) -> str:
    item = item.strip()
    return item.replace(" ", "") if predicate == "Equals" else "".join(sorted(item))


def named_line(question: str) -> str:
    """The two letters before the question mark; the official prompt goes on after it."""
    return question.split("?")[0][-2:]


def official(raw: str, *, reference: str, predicate: str, question: str) -> float:
    given = official_items(raw)
    wanted = [item.replace(" ", "").replace("angle", "") for item in reference.split(", ")]
    if predicate == "PointLiesOnLine":
        given = [item for item in given if item not in list(named_line(question))]
    if len(wanted) == 1 and wanted[0] in ANGLES:
        likeness = [SequenceMatcher(None, given[0], word).ratio() for word in ANGLES]
        return float(ANGLES[likeness.index(max(likeness))] == wanted[0])
    if not set(given) <= set(wanted):
        return 0.0
    return len({_hashed(item) for item in given}) / len({_hashed(item) for item in wanted})


def official_items(raw: str) -> list[str]:
    text = raw
    for mark in ("is ", "are ", ": "):
        if mark in text:
            text = text.split(mark)[1]
    text = text.split(".")[0].split("\n")[0]
    return [re.sub(r"[° ()\"]|angle", "", item) for item in text.split(", ")]


def _hashed(item: str) -> tuple[int, ...]:
    """The item's letters in the order in which a set lists them.

    The released code builds a set of characters, whose order changes with PYTHONHASHSEED; a set of code points has the
    same weakness (an order that depends on insertion when two entries collide) and is the same in every process.
    """
    return tuple(set(map(ord, item)))
