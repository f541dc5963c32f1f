"""Scenes as a source: pure, balanced, without a cue in the first view, and clear about mistakes."""

import json
import multiprocessing
import re
import zlib
from collections import Counter
from string import ascii_uppercase

import numpy as np
import pytest

from gnomon.data.check import check
from gnomon.data.geometry import check as check_geometry
from gnomon.data.sample import IMAGE_MARK
from gnomon.data.sources.scenes.render import render
from gnomon.data.sources.scenes.source import TASKS, Scenes


def digest(arguments: dict, index: int) -> tuple:
    sample = Scenes(**arguments)[index]
    geometry = sample.geometry
    arrays = (*geometry.views, geometry.depth, geometry.normals, geometry.points, geometry.instances)
    arrays = (*arrays, geometry.intrinsics, geometry.extrinsics)
    crc = zlib.crc32(b"".join(np.ascontiguousarray(array).tobytes() for array in arrays))
    return sample.id, sample.turns, sample.answer, json.dumps(sample.meta), crc


def test_an_item_is_the_same_in_any_order_and_in_another_process():
    arguments = {"count": 10**9, "seed": 3}
    indices = [*range(13), 10**9 - 1]
    here = {index: digest(arguments, index) for index in indices}
    source = Scenes(**arguments)
    for index in reversed(indices):
        assert source[index].turns == here[index][1]
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.starmap(digest, [(arguments, index) for index in indices]) == list(here.values())


def test_seeds_and_splits_share_no_item():
    kinds = ((0, "train"), (0, "test"), (1, "train"))
    pictures = [{s.images[0].tobytes() for s in Scenes(count=12, seed=seed, split=split)} for seed, split in kinds]
    assert len(set.union(*pictures)) == 36


@pytest.mark.parametrize("size", [(112, 112), (48, 128), (90, 64)])
@pytest.mark.parametrize(("views", "count"), [(1, 24), ((2, 4), 24), (6, 24), (256, 2)])
def test_samples_are_whole(size, views, count):
    low, high = (views, views) if isinstance(views, int) else views
    for sample in Scenes(count=count, seed=1, size=size, views=views):
        check(sample, train=True)
        check_geometry(sample.geometry, max_views=high)
        count = len(sample.geometry.views)
        assert low <= count <= high and count == sample.meta["views"]
        assert all(view.shape == (*size, 3) and view.dtype == np.uint8 for view in sample.geometry.views)
        assert sample.images[0] is sample.geometry.views[0] and len(sample.images) == 1
        lens = sample.geometry.intrinsics[0]
        assert 0.8 <= lens[0, 0] / min(size) <= 1.4 and lens[0, 0] == lens[1, 1]
        assert (lens[0, 2], lens[1, 2]) == (size[1] / 2, size[0] / 2)


def test_all_views_can_be_shown():
    for first, sample in zip(Scenes(count=24), Scenes(count=24, shown="all")):
        assert len(sample.images) == sample.marks == len(sample.geometry.views) > 1
        assert sample.turns[0].text.replace(f"{IMAGE_MARK}\n", "") == first.turns[0].text.replace(f"{IMAGE_MARK}\n", "")


@pytest.mark.parametrize("name", TASKS)
def test_answers_and_letters_are_equally_frequent(name):
    answers = TASKS[name].answers
    source = Scenes(count=10**6, seed=8, tasks=[name])
    found = [source._answer(index) for index in range(2000 * answers)]
    for column in zip(*found):
        assert set(Counter(column).values()) == {2000}
    # one says nothing about the other
    assert np.corrcoef(np.array(found).T)[0, 1] == pytest.approx(0, abs=0.05)
    items = [source.compose(index) for index in range(4 * answers)]
    assert set(Counter(item.chosen.answer for item in items).values()) == {4}
    if items[0].question.choices:
        assert set(Counter(item.question.letter for item in items).values()) == {4}


@pytest.mark.parametrize("name", [name for name in TASKS if name != "mirror"])
def test_every_answer_has_the_same_first_view_and_question(name):
    """The leak audit's reason: what the first view and the words say is settled before the answer is."""
    source = Scenes(count=10**6, seed=5, tasks=[name])
    for index in range(3):
        twins = [source.compose(index, answer=answer) for answer in range(TASKS[name].answers)]
        assert len({twin.question.text for twin in twins}) == 1
        assert len({frozenset(twin.question.choices) for twin in twins}) == 1
        assert len({twin.question.words for twin in twins}) == len(twins)
        pictures = [render(twin.scene, (112, 112), twin.draws) for twin in twins]
        for other in pictures[1:]:
            # rounding aside, which may move a texture's boundary
            assert (pictures[0].views[0] != other.views[0]).any(-1).mean() < 2e-3
            further = [(one != two).any(-1).mean() for one, two in zip(pictures[0].views[1:], other.views[1:])]
            assert max(further) > 0.002


def test_depth_and_apparent_size_are_independent():
    ratios, larger = [], []
    for sample in Scenes(count=400, seed=7, tasks=["nearer"]):
        (one, two), rotation = sample.meta["objects"][:2], sample.geometry.extrinsics[0]
        away = [np.linalg.norm(rotation[:, :3] @ np.array(thing["centre"]) + rotation[:, 3]) for thing in (one, two)]
        area = [(sample.geometry.instances[0] == thing["id"]).sum() for thing in (one, two)]
        ratios.append(away[0] < away[1])
        larger.append(area[0] > area[1])
    # with sizes drawn in metres the nearer one is larger in the picture in four of five pairs
    assert abs(np.mean(np.array(ratios) == np.array(larger)) - 0.5) < 4 * 0.5 / 400**0.5


def test_nothing_asked_about_is_hidden_in_the_first_view_or_unseen_in_all_others():
    for sample in Scenes(count=120, seed=6):
        area = sample.geometry.instances
        asked = sample.meta["objects"][: sample.meta["asked"]]
        for thing in asked:
            assert (area[0] == thing["id"]).sum() >= 12
            assert (area[1:] == thing["id"]).sum(axis=(1, 2)).max() >= 5
        # no picture edge cuts off what the first view shows
        edge = np.concatenate([area[0][0], area[0][-1], area[0][:, 0], area[0][:, -1]])
        assert not edge.any()


def test_in_words_the_reply_is_the_choice_that_the_letter_names():
    letters, words = Scenes(count=36, seed=3), Scenes(count=36, seed=3, prompt="words")
    for asked, told in zip(letters, words):
        text, reply = asked.turns[0].text, asked.turns[1].text
        assert text.startswith(told.turns[0].text)
        if asked.meta["predicate"] == "choice":
            assert f"\n{reply}:{told.turns[1].text}\n" in text + "\n" and asked.answer == reply
            assert asked.meta["choices"][ascii_uppercase.index(reply)] == told.answer == told.turns[1].text
        else:
            assert told.turns == asked.turns and float(reply) == asked.answer


def test_names_are_unique_and_said_in_the_question():
    for sample in Scenes(count=60, seed=11):
        names = [thing["name"] for thing in sample.meta["objects"]]
        assert len(set(names)) == len(names) == len({thing["id"] for thing in sample.meta["objects"]})
        said = set(re.findall(r"\b\w+ (?:ball|box|can|figure)\b", sample.turns[0].text))
        assert said == set(names[: sample.meta["asked"]])


def test_meta_is_plain_and_numbers_are_rounded():
    for sample in Scenes(count=24):
        assert json.loads(json.dumps(sample.meta)) == sample.meta
        if sample.meta["predicate"] == "number":
            assert sample.answer > 0 and re.fullmatch(r"\d+(\.\d\d)?", sample.turns[1].text)


def test_options_are_followed():
    source = Scenes(count=20, tasks=["nearer"], objects=(7, 7), distances=(3.0, 5.0), baseline=(0.5, 0.5), views=3)
    for sample in source:
        assert len(sample.meta["objects"]) == 7
        eyes = [-camera[:, :3].T @ camera[:, 3] for camera in sample.geometry.extrinsics]
        assert [np.linalg.norm(eye - eyes[0]) for eye in eyes[1:]] == pytest.approx([0.5, 0.5])
        away = [np.linalg.norm(np.array(thing["centre"]) - eyes[0]) for thing in sample.meta["objects"]]
        assert min(away) >= 3 and max(away) <= 5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"tasks": ["near"]}, "'near' is unknown; choose from nearer"),
        ({"tasks": []}, "tasks is empty"),
        ({"size": (32, 112)}, "at least 48"),
        ({"views": 0}, "views is"),
        ({"views": (3, 2)}, "views is"),
        ({"views": 257}, "views is"),
        ({"views": 1, "tasks": ["count"]}, "'count' needs 2 views"),
        ({"split": "dev"}, "choose from train, test"),
        ({"prompt": "official"}, "choose from question, words"),
        ({"shown": "second"}, "choose from first, all"),
        ({"objects": (4, 40)}, "objects is"),
        ({"distances": (8.0, 2.0)}, "distances is"),
        ({"angular": (0.1, 0.9)}, "angular is"),
        ({"baseline": (0.5, 4.0)}, "baseline is"),
        ({"seed": -1}, "seed is -1"),
    ],
)
def test_mistakes_are_named_with_their_remedy(arguments, message):
    with pytest.raises(ValueError, match=message) as caught:
        Scenes(count=1, **arguments)
    assert "\n" not in str(caught.value)


def test_a_setting_that_leaves_no_room_is_told():
    with pytest.raises(ValueError, match=r"no scene for 'nearer'.*widen distances"):
        Scenes(count=1, tasks=["nearer"], distances=(4.0, 4.1))[0]
    with pytest.raises(IndexError):
        Scenes(count=3)[3]
