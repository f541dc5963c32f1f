"""Diagrams as a source: pure, balanced, packed, worded officially, and clear about mistakes."""

import multiprocessing
import re
import zlib
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest

from gnomon.data.sample import IMAGE_MARK
from gnomon.data.sources.diagrams.official import SUFFIXES
from gnomon.data.sources.diagrams.source import TASKS, Diagrams
from gnomon.data.sources.diagrams.tasks.transcribe import gazes


def digest(arguments: dict, index: int) -> tuple:
    sample = Diagrams(**arguments)[index]
    return sample.id, sample.turns, str(sample.answer), zlib.crc32(sample.images[0].tobytes())


def test_an_item_is_the_same_in_any_order_and_in_another_process():
    arguments = {"count": 10**9, "seed": 3, "questions": 2}
    indices = [*range(26), 10**9 - 1]
    here = {index: digest(arguments, index) for index in indices}
    source = Diagrams(**arguments)
    for index in reversed(indices):
        sample = source[index]
        assert (sample.turns, zlib.crc32(sample.images[0].tobytes())) == (here[index][1], here[index][3])
    # A spawned process has another hash seed, so that an order taken from a set would show.
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.starmap(digest, [(arguments, index) for index in indices]) == list(here.values())


def test_seeds_and_splits_share_no_item():
    texts = [
        {Diagrams(count=60, seed=seed, split=split).compose(k).questions[0][1].text for k in range(60)}
        for seed, split in ((0, "train"), (0, "test"), (1, "train"))
    ]
    for k, one in enumerate(texts):
        for other in texts[:k]:
            # Only questions that name nothing can coincide.
            assert not [text for text in one & other if re.search(r"\b[A-Z]{2,4}\b", text.split("\n")[0])]


@pytest.mark.parametrize("size", [(224, 224), (128, 320), (300, 140)])
def test_images_have_the_size_asked_for_and_hold_ink(size):
    source = Diagrams(count=20, size=size)
    for sample in source:
        (image,) = sample.images
        assert image.shape == (*size, 3) and image.dtype == np.uint8
        assert 0.002 < (image.min(axis=2) < 140).mean() < 0.4
        # Smooth edges: between ink and paper there are grays.
        assert len(np.unique(image)) > 8


def answers(task: str, level: int, key, count: int = 400) -> Counter:
    source = Diagrams(count=count, seed=8, tasks=[task], levels=[level])
    return Counter(key(source.compose(k).questions[0][1]) for k in range(count))


@pytest.mark.parametrize("level", [1, 2, 3])
@pytest.mark.parametrize("task", ["angle", "longer", "shape", "count", "relation"])
def test_offered_answers_are_equally_frequent(task, level):
    place = {
        "angle": lambda q: q.answer,
        "longer": lambda q: q.meta["choices"].index(q.answer),
    }.get(task, lambda q: q.answer)
    counts = answers(task, level, place)
    expected = 400 / (2 if task in ("angle", "longer") else 4)
    assert len(counts) == 400 / expected
    # Four standard deviations of a fair draw.
    assert max(abs(n - expected) for n in counts.values()) < 4 * (expected * (1 - expected / 400)) ** 0.5


@pytest.mark.parametrize(
    ("task", "key", "values"),
    [
        ("point_on_line", lambda q: len(q.meta["points"]), 3),
        ("point_on_circle", lambda q: len(q.meta["points"]), 4),
        ("parallel", lambda q: len(q.meta["lines"]), 2),
        ("perpendicular", lambda q: len(q.meta["lines"]), 2),
    ],
)
def test_lengths_of_lists_are_equally_frequent(task, key, values):
    counts = answers(task, 1, key, 300)
    assert len(counts) == values and min(counts.values()) > 0.75 * 300 / values


def test_several_questions_about_one_figure():
    source = Diagrams(count=60, questions=4)
    lengths = Counter()
    for sample in source:
        users = [turn.text for turn in sample.turns if turn.role == "user"]
        assert users[0].startswith(f"{IMAGE_MARK}\n") and sample.marks == 1
        gists = {"".join(sorted(text.replace("?", ""))) for text in users}
        assert len(gists) == len(users) == len(sample.answer) == len(sample.meta["questions"])
        assert [turn.role for turn in sample.turns] == ["user", "assistant"] * len(users)
        lengths[len(users)] += 1
    assert lengths[4] > 25
    # The first question is the one that the same source without packing asks.
    single = Diagrams(count=60)
    assert all(single[k].turns == source[k].turns[:2] for k in range(0, 60, 7))


def parsed(raw: str) -> list[str]:
    """The released Geoperception parser, as its rule is described: pieces after "is ", "are ", ": "."""
    for mark in ("is ", "are ", ": "):
        if mark in raw:
            raw = raw.split(mark)[1]
    raw = raw.split(".")[0].split("\n")[0]
    return [re.sub(r'[° ()"]|angle', "", item) for item in raw.split(", ")]


def test_official_prompts_and_replies_that_the_official_parser_reads():
    tasks = [task for task, entry in TASKS.items() if entry.family == "geoperception"]
    assert len(tasks) == len(SUFFIXES) == 7
    plain = Diagrams(count=140, tasks=tasks)
    for k, sample in enumerate(Diagrams(count=140, tasks=tasks, prompt="official")):
        user, assistant = (turn.text for turn in sample.turns)
        suffix = SUFFIXES[sample.meta["predicate"]]
        assert user == f"{plain[k].turns[0].text} {suffix}" and "templete" in suffix
        reference = {"".join(sorted(name)) for name in sample.answer.split(", ")}
        assert {"".join(sorted(name)) for name in parsed(assistant)} == reference
        assert parsed(plain[k].turns[1].text) == parsed(assistant)


def test_official_suffixes_to_the_letter():
    assert SUFFIXES["PointLiesOnLine"].endswith("The another point is: A\nOr: The other points are: A, B, C")
    assert SUFFIXES["Parallel"] == (
        "Answer me directly just with the all lines which are parallel to the line mentioned in the question (do not "
        "include the line mentioned in the question). Answer templete: (if there is only one line) The line is: "
        '"your_line". Or (if there are multiple lines) The lines are: "your_lines".\nFor example: The line is: BC\n'
        "Or: The lines are: BC, DE"
    )


def test_mixture_decides_tasks_and_levels():
    source = Diagrams(count=400, mixture={"angle": {1: 3.0, 3: 1.0}, "shape": {2: 4.0, 1: 0.0}})
    seen = Counter((item.task, item.level) for item in map(source.compose, range(400)))
    assert set(seen) == {("angle", 1), ("angle", 3), ("shape", 2)}
    assert 110 < seen["angle", 1] < 190 and 25 < seen["angle", 3] < 80


def test_transcripts_follow_a_ruler():
    source = Diagrams(count=30, tasks=["transcribe"], ruler=4)
    for sample in source:
        for line in sample.turns[1].text.split("\n"):
            if " -- " in line:
                points = [complex(*map(float, pair)) for pair in re.findall(r"\((-?[\d.]+), (-?[\d.]+)\)", line)]
                steps = [abs(b - a) for a, b in pairwise(points)]
                # Coordinates are rounded to tenths.
                assert all(abs(step - 4) < 0.15 for step in steps[:-1]) and 0 < steps[-1] < 4.15


def test_gazes_of_the_paper():
    assert gazes([0, 0, 10, 0], 4) == [(0, 0), (4, 0), (8, 0), (10, 0)]
    assert gazes([0, 0, 8, 0], 4) == [(0, 0), (4, 0), (8, 0)]
    assert gazes([0, 0, 10, 0], None) == [(0, 0), (10, 0)]


def test_held_out_style_shares_neither_font_nor_paper():
    looks = {}
    for style in ("default", "held_out"):
        drawn = [Diagrams(count=80, style=style).compose(k).style for k in range(80)]
        looks[style] = ({look.font for look in drawn}, {look.paper for look in drawn}, {look.ink for look in drawn})
    for ours, theirs in zip(looks["default"], looks["held_out"]):
        assert ours and theirs and not ours & theirs


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"tasks": ["angles"]}, "'angles' is unknown; choose from point_on_line"),
        ({"levels": [4]}, "level 4"),
        ({"size": (64, 224)}, "at least 112"),
        ({"questions": 0}, "questions is 0"),
        ({"split": "dev"}, "choose from train, test"),
        ({"prompt": "short"}, "choose from question, official"),
        ({"mixture": {"angle": {1: 0.0}}}, "no task any weight"),
        ({"mixture": {"angle": {1: -1.0}}}, "at least 0"),
        ({"mixture": {"angle": {1: 1.0}}, "levels": [1]}, "leave out"),
        ({"ruler": 0.0}, "above 0"),
    ],
)
def test_mistakes_are_named_with_their_remedy(arguments, message):
    with pytest.raises(ValueError, match=message) as caught:
        Diagrams(count=1, **arguments)
    assert "\n" not in str(caught.value)


def test_items_beyond_the_end():
    with pytest.raises(IndexError):
        Diagrams(count=3)[3]
    assert len(list(Diagrams(count=3))) == 3


def test_in_words_the_reply_is_the_choice_that_the_letter_names():
    options = {"count": 40, "seed": 3, "tasks": ["shape", "count", "angle"], "size": (112, 112)}
    letters, words = Diagrams(**options), Diagrams(**options, prompt="words")
    for i in range(40):
        asked, told = letters[i], words[i]
        if asked.meta["task"] == "angle":
            assert told.turns == asked.turns
        else:
            assert "Choices" not in told.turns[0].text
            line = f"\n{asked.turns[1].text}:{told.turns[1].text}"
            assert line in asked.turns[0].text + "\n"
            assert asked.turns[0].text.startswith(told.turns[0].text)
