import json
import pickle

import numpy as np
import pytest
from PIL import Image

from gnomon.data.errors import BadSample
from gnomon.data.processor import Processor
from gnomon.data.sample import Turn
from gnomon.data.sources.jsonl import LlavaJson
from gnomon.data.sources.shards import Shards
from gnomon.data.write_shards import write
from gnomon.vlm.layout import ImageSpec, ViewsSpec


def row(*values: str, **rest) -> dict:
    return {"conversations": [{"from": ("human", "gpt")[i % 2], "value": v} for i, v in enumerate(values)], **rest}


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "images"
    (folder / "coco").mkdir(parents=True)
    (folder / "coco" / "a.jpg").write_bytes(b"a")
    (tmp_path / "secret.jpg").write_bytes(b"s")
    return folder


ROWS = [
    row("<image>\nWhat?", "A dog — ☃.", id=7, image="coco/a.jpg"),
    row("Hi", "Yo", id="text"),
    row("Compare <image> and <image>", "Same.", image=["coco/a.jpg", "coco/a.jpg"]),
    row("What?", "A dog.", image="coco/a.jpg"),
]


def written(tmp_path, rows, kind):
    path = tmp_path / f"data.{kind}"
    if kind == "json":
        path.write_text(json.dumps(rows))
    else:
        path.write_bytes(b"\r\n".join(json.dumps(r, ensure_ascii=False).encode() for r in rows) + b"\n\n")
    return path


@pytest.mark.parametrize("kind", ["json", "jsonl"])
def test_rows_become_samples(tmp_path, images, kind):
    source = LlavaJson(written(tmp_path, ROWS, kind), images)
    first, text, two, unmarked = source
    assert first.id == "7" and first.turns == (Turn("user", "<image>\nWhat?"), Turn("assistant", "A dog — ☃."))
    assert first.images == ((images / "coco/a.jpg").resolve(),)
    assert text.images == () and text.marks == 0 and text.id == "text"
    assert len(two.images) == two.marks == 2 and two.id == "2"
    assert unmarked.turns[0].text == "<image>\nWhat?"
    # as it goes to worker processes
    assert pickle.loads(pickle.dumps(source))[2] == two


def test_the_missing_mark_goes_to_the_first_question_not_to_the_system_turn(tmp_path, images):
    talk = row("What?", "A dog.", image="coco/a.jpg")
    talk["conversations"].insert(0, {"from": "system", "value": "Be brief."})
    [sample] = LlavaJson(written(tmp_path, [talk], "jsonl"), images)
    assert [turn.text for turn in sample.turns] == ["Be brief.", "<image>\nWhat?", "A dog."]


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        (row("a", "b", image=["coco/a.jpg", "coco/a.jpg"]), "0 <image> marks and 2 images"),
        (row("<image>a<image>", "b", image="coco/a.jpg"), "2 <image> marks and 1 images"),
        (row("<image>a", "b"), "1 <image> marks and 0 images"),
        (row("a", "b", image="../secret.jpg"), "leads out of"),
        (row("a", "b", image="/etc/passwd"), "leads out of"),
        (row("a", "b", image="coco/../../secret.jpg"), "leads out of"),
        (row("a", "b", image="link.jpg"), "leads out of"),
        (row("a", "b", image={"path": "a"}), "neither a name nor a list"),
        ({"id": 1}, "no conversations"),
        ({"conversations": [{"from": "robot", "value": "x"}]}, "needs 'from' (human, gpt or system)"),
        ({"conversations": [{"from": "human", "value": None}]}, "needs 'from'"),
        ({"conversations": ["hello"]}, "needs 'from'"),
        ([1, 2], "is list, not an object"),
    ],
    ids=lambda value: value if isinstance(value, str) else "row",
)
@pytest.mark.parametrize("kind", ["json", "jsonl"])
def test_bad_rows_are_named(tmp_path, images, bad, says, kind):
    (images / "link.jpg").symlink_to(tmp_path / "secret.jpg")
    path = written(tmp_path, [ROWS[0], bad], kind)
    source = LlavaJson(path, images)
    assert source[0].id == "7"
    with pytest.raises(BadSample) as error:
        source[1]
    assert says in str(error.value) and "\n" not in str(error.value)
    assert str(error.value).startswith(f"{path} " + ("row 1:" if kind == "json" else "line 2:"))


VIEWS = [f"v/{k}.png" for k in range(3)]


@pytest.fixture
def views(images):
    """Three pictures of noise, as pixels."""
    (images / "v").mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (3, 48, 64, 3), dtype=np.uint8)
    for name, picture in zip(VIEWS, pixels):
        Image.fromarray(picture).save(images / name)
    return pixels


SCENES = [
    row("<image>\nHow far?", "2 m", image=VIEWS),
    row("<image><image>\n<image> How far?", "2 m", image=VIEWS),
    row("<image>\nHow far?", "2 m", "And now?", "3 m", image=VIEWS[:2]),
    row("Hi", "Yo"),
]


def test_the_images_of_a_row_are_the_views_of_one_scene(tmp_path, images, views, demo_tokenizer):
    """What Pillow wrote reaches the geometry encoder, every view of it; the marks say which are pictures as well."""
    path = written(tmp_path, SCENES, "jsonl")
    source = LlavaJson(path, images, scenes=True)
    files = tuple(images / name for name in VIEWS)
    assert [sample.geometry and sample.geometry.views for sample in source] == [files, files, files[:2], None]
    assert [sample.images for sample in source] == [files[:1], files, files[:1], ()]
    assert [sample.marks for sample in source] == [1, 3, 1, 0]
    processor = Processor(demo_tokenizer, "demo", ImageSpec((32, 32), 16), views=ViewsSpec(16))
    first, shown, *_ = (processor.example(sample, train=True) for sample in source)
    for example, image in ((first, [0, -1, -1]), (shown, [0, 1, 2])):
        assert np.array_equal(example.views.pixels.permute(0, 2, 3, 1).numpy(), views)
        assert example.views.image == image
    # which is not what the file says without the option
    assert LlavaJson(path, images)[1].geometry is None


def test_scenes_of_pictures_alone_go_through_shards(tmp_path, images, views):
    rows = LlavaJson(written(tmp_path, SCENES, "jsonl"), images, scenes=True)
    [path] = write(rows, tmp_path / "shards")
    for sample, row in zip(Shards(path), rows):
        assert sample.turns == row.turns and sample.images == tuple(name.read_bytes() for name in row.images)
        if row.geometry is not None:
            assert sample.geometry.views == tuple(name.read_bytes() for name in row.geometry.views)
            assert sample.geometry.depth is None and sample.geometry.points is None


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        (row("How far?", "b", image=VIEWS), "0 <image> marks and 3 views of a scene; give it 1 mark, which is the"),
        (row("<image><image>", "b", image=VIEWS), "2 <image> marks and 3 views of a scene"),
        (row("<image>", "b", image=VIEWS[:1]), "has 1 image, but a scene takes 2 views or more; add some"),
        (row("<image>", "b"), "1 <image> marks and 0 images"),
    ],
)
def test_rows_that_are_no_scene_are_named(tmp_path, images, views, bad, says):
    source = LlavaJson(written(tmp_path, [SCENES[0], bad], "jsonl"), images, scenes=True)
    with pytest.raises(BadSample) as error:
        source[1]
    assert says in str(error.value) and "data.jsonl line 2: " in str(error.value) and "\n" not in str(error.value)


def test_views_that_a_model_does_not_take_are_told_with_their_row(tmp_path, images, views, demo_tokenizer):
    Image.new("RGB", (64, 32)).save(images / "v" / "low.png")
    rows = [SCENES[0], row("<image>", "b", image=[VIEWS[0], "v/low.png"])]
    source = LlavaJson(written(tmp_path, rows, "jsonl"), images, scenes=True)
    processor = Processor(demo_tokenizer, "demo", ImageSpec((32, 32), 16), views=ViewsSpec(16, 2))
    with pytest.raises(BadSample, match=r"data.jsonl line 1.*3 views are more than max_views 2; leave some out"):
        processor.example(source[0], train=True)
    with pytest.raises(BadSample, match=r"data.jsonl line 2.*view 1 is 32x64 but view 0 is 48x64; resize all views"):
        processor.example(source[1], train=True)


def test_a_broken_line_is_named_and_its_neighbours_are_read(tmp_path, images):
    path = tmp_path / "data.jsonl"
    path.write_text(json.dumps(ROWS[1]) + '\n\n{"id": 3, "conv\n' + json.dumps(ROWS[1]) + "\n")
    source = LlavaJson(path)
    assert len(source) == 3 and source[2].id == "text"
    with pytest.raises(BadSample, match=r"data.jsonl line 3: is not JSON"):
        source[1]


def test_user_mistakes(tmp_path, images):
    with pytest.raises(ValueError, match="no such file"):
        LlavaJson(tmp_path / "none.json")
    with pytest.raises(ValueError, match="no such folder"):
        LlavaJson(written(tmp_path, ROWS, "json"), tmp_path / "none")
    (tmp_path / "cut.json").write_text('[{"id": 1}, ')
    with pytest.raises(ValueError, match=r"cut.json: is not JSON"):
        LlavaJson(tmp_path / "cut.json")
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(ValueError, match=r"empty.jsonl: holds no row"):
        LlavaJson(tmp_path / "empty.jsonl")
    with pytest.raises(BadSample, match="no folder of images was given"):
        LlavaJson(written(tmp_path, ROWS, "jsonl"))[0]
    with pytest.raises(IndexError):
        LlavaJson(written(tmp_path, ROWS, "jsonl"))[4]
