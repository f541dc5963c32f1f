"""From a model's text to an answer: parsers that never guess. None always means "not parsed".

Published toolkits read the same text differently; a parser that follows one of them carries its name. `strict` is ours.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from string import ascii_uppercase

_WORDS = {
    "zero": 0, "one": 1, "two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8, "nine": 9,
    "ten": 10, "eleven": 11, "twelve": 12, "thirteen": 13, "fourteen": 14, "fifteen": 15, "sixteen": 16,
    "seventeen": 17, "eighteen": 18, "nineteen": 19, "twenty": 20, "thirty": 30, "forty": 40, "fifty": 50,
    "sixty": 60, "seventy": 70, "eighty": 80, "ninety": 90,
}  # fmt: skip
_TENS = "|".join(word for word, value in _WORDS.items() if value >= 20)
_ONES = "|".join(word for word, value in _WORDS.items() if 1 <= value <= 9)
_SPOKEN = rf"\b(?:(?:{_TENS})[- ](?:{_ONES})|{'|'.join(_WORDS)})\b"
_TAG = re.compile(r"<answer>\s*(.*?)\s*(?:</answer>|\Z)", re.S | re.I)


def strip_think(raw: str) -> str:
    """The text without its thinking; a block that was never closed swallows the rest."""
    text = re.sub(r"<think>.*?(?:</think>|\Z)", "", raw, flags=re.S | re.I)
    # a template may have opened the block inside the prompt
    return re.split(r"</think>", text, flags=re.I)[-1].strip()


def tagged(raw: str) -> str:
    """The last <answer> block where there is one, else the whole text; thinking removed either way."""
    text = strip_think(raw)
    blocks = _TAG.findall(text)
    return blocks[-1] if blocks else text


def strict_choice(raw: str, options: Mapping[str, str]) -> str | None:
    """The option letter: an <answer> tag, a lone letter, the last "answer is X", else a unique option text."""
    text = tagged(raw)
    letters = "".join(options)
    lone = re.fullmatch(rf"\W*([{letters}{letters.lower()}])\W*", text)
    if lone:
        return lone[1].upper()
    opening = re.match(rf"\(?([{letters}])[).:](?:\s|$)", text)
    if opening:
        return opening[1]
    stated = re.findall(rf"answer(?:\s+is)?\s*:?\s*\W{{0,3}}([{letters}])(?!\w)", text, flags=re.I)
    if stated:
        return stated[-1].upper()
    named = [letter for letter, option in options.items() if _contains(text, option)]
    return named[0] if len(named) == 1 else None


def _contains(text: str, option: str) -> bool:
    return bool(option) and re.search(rf"(?<!\w){re.escape(option.lower())}(?!\w)", text.lower()) is not None


def official_number(raw: str) -> float | None:
    """VSI-Bench's own rule: the first word, as a float."""
    try:
        value = float(raw.split(" ")[0].rstrip(".").strip())
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def lmms_number(raw: str) -> float | None:
    """The first number, in digits or in English words; knows neither ".5" nor "1,200" nor exponents."""
    match = re.search(rf"-?\d+(?:\.\d+)?|{_SPOKEN}", raw, flags=re.I)
    if match is None:
        return None
    words = re.split(r"[- ]", match[0].lower())
    return float(sum(_WORDS[word] for word in words)) if words[0] in _WORDS else float(match[0])


def vk_number(raw: str) -> float | None:
    """The last number after the thinking; an <answer> block wins, of a bracketed list the first entry counts."""
    text = tagged(raw)
    listed = re.fullmatch(r"\[(.*)\]", text.strip(), flags=re.S)
    if listed:
        text = listed[1].split(",")[0]
    small = "|".join(word for word, value in _WORDS.items() if value <= 20)
    text = re.sub(rf"\b(?:{small})\b", lambda match: str(_WORDS[match[0].lower()]), text, flags=re.I)
    found = re.findall(r"[-+]?(?:\d+\.?\d*|\.\d+)(?:e[-+]?\d+)?", text, flags=re.I)
    return float(found[-1]) if found else None


def box(raw: str) -> tuple[float, float, float, float] | None:
    """The last group of four numbers, put into order (left, top, right, bottom)."""
    number = r"-?\d+(?:\.\d+)?"
    found = re.findall(rf"({number})\s*[, ]\s*({number})\s*[, ]\s*({number})\s*[, ]\s*({number})", tagged(raw))
    if not found:
        return None
    x1, y1, x2, y2 = map(float, found[-1])
    return min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2)


def lettered(choices: list[str]) -> dict[str, str]:
    """Option texts under their letters A, B, C, ..."""
    return dict(zip(ascii_uppercase, choices))
