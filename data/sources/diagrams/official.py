"""The official Geoperception prompts: the released suffix of each predicate, and a reply in the form it asks for."""

from __future__ import annotations

from gnomon.data.sources.diagrams.question import Question

# Kept to the letter, mistakes in spelling included: a corrected prompt is another protocol.
_LINES = (
    "Answer me directly just with the all lines which are {word} to the line mentioned in the question (do not include "
    'the line mentioned in the question). Answer templete: (if there is only one line) The line is: "your_line". Or '
    '(if there are multiple lines) The lines are: "your_lines".\nFor example: The line is: BC\nOr: The lines are: '
    "BC, DE"
)
SUFFIXES = {
    "PointLiesOnLine": (
        "Answer me directly just with the all points lie on the line mentioned in the question (do not include the "
        "point mentioned in the question). Answer templete: (if there is only one point) The another point is: "
        '"your_point". Or (if there are multiple points) The other points are: "your_points".\nFor example: The '
        "another point is: A\nOr: The other points are: A, B, C"
    ),
    "PointLiesOnCircle": (
        "Answer me directly just with the all points lie on the circle mentioned in the question. Answer templete: (if "
        'there is only one point) The point is: "your_point". Or (if there are multiple points) The points are: '
        '"your_points".\nFor example: The point is: A\nOr: The points are: A, B, C'
    ),
    "Parallel": _LINES.format(word="parallel"),
    "Perpendicular": _LINES.format(word="perpendicular"),
    "Equals": (
        "Answer me directly just with the annotations presented on the image. Answer templete: The annotation is: "
        '"your_annotation".\nFor example: The annotation is: 2x+4\nOr: The annotations is: 90'
    ),
    "AngleClassification": (
        "Answer me directly just with the classification of the angle mentioned in the question. Answer templete: The "
        'angle is: "your_angle".\nFor example: The angle is: acute\nOr: The angle is: obtuse'
    ),
    "LineComparison": (
        "Answer me directly just with the longer line mentioned in the question. Answer templete: The longer line is: "
        '"your_line".\nFor example: The longer line is: BC\nOr: The longer line is: DE'
    ),
}
# What precedes the answer: for one item, and for several.
_LEADS = {
    "PointLiesOnLine": ("The another point is: ", "The other points are: "),
    "PointLiesOnCircle": ("The point is: ", "The points are: "),
    "Parallel": ("The line is: ", "The lines are: "),
    "Perpendicular": ("The line is: ", "The lines are: "),
    "Equals": ("The annotation is: ",) * 2,
    "AngleClassification": ("The angle is: ",) * 2,
    "LineComparison": ("The longer line is: ",) * 2,
}


def official(question: Question) -> tuple[str, str]:
    """Prompt and reply; questions of other benchmarks stay as they are."""
    if question.predicate not in SUFFIXES:
        return question.text, question.reply
    lead = _LEADS[question.predicate]["," in question.reply]
    return f"{question.text} {SUFFIXES[question.predicate]}", lead + question.reply
