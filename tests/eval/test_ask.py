"""One question: what streams is the answer, whole characters only, and images are checked first."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from gnomon.eval import ask as asking
from gnomon.eval.ask import Stream, ask, cover, question_of, read_images, read_views
from gnomon.eval.session import open_model
from gnomon.vlm.fusion.add import Add
from gnomon.vlm.geometry.tinygeo import TinyGeo
from gnomon.vlm.model import VLM


@pytest.fixture(scope="module")
def loaded(model_dir):
    return open_model(str(model_dir), device="cpu")


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "x.png"
    Image.effect_noise((80, 60), 90).convert("RGB").save(path)
    return path


@pytest.mark.parametrize("count", [0, 1, 2])
def test_streams_the_answer(loaded, picture, count):
    pieces = []
    example = question_of(loaded, "What is it?", read_images([picture] * count))
    given = ask(loaded, example, show=pieces.append, max_new_tokens=20)
    assert "".join(pieces) == given.text and len(given.ids) <= 20
    # 36 tokens an image: it was really looked at
    assert given.prompt_tokens // 49 == count


def test_sampling_is_seeded(loaded, picture):
    example = question_of(loaded, "What is it?", read_images([picture]))

    def say(**options):
        return ask(loaded, example, show=lambda piece: None, max_new_tokens=12, **options).text

    assert say(temperature=1.5, seed=1) == say(temperature=1.5, seed=1) != say(temperature=1.5, seed=2)
    assert say() == say()


def test_characters_of_several_tokens_come_whole():
    data = "aé→𝔸b".encode()
    stream = Stream(lambda ids: bytes(ids).decode(errors="replace"))
    pieces = [stream.push(byte) for byte in data]
    assert "".join(pieces) == "aé→𝔸b" and pieces == ["a", "", "é", "", "", "→", "", "", "", "𝔸", "b"]
    assert stream.rest() == ""


def test_an_unfinished_character_shows_at_the_end():
    stream = Stream(lambda ids: bytes(ids).decode(errors="replace"))
    assert [stream.push(0x61), stream.push(0xC3), stream.rest()] == ["a", "", "\ufffd"]


def test_bad_images_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"image 1 \(.*nothing.png\): no such file"):
        read_images([tmp_path / "nothing.png"])
    (tmp_path / "text.png").write_text("not a picture")
    with pytest.raises(ValueError, match=r"text.png\): cannot be decoded"):
        read_images([tmp_path / "text.png"])


def test_an_image_mark_in_the_question_is_refused(loaded):
    with pytest.raises(ValueError, match="<image>"):
        question_of(loaded, "What is <image>?")


def test_views_of_a_scene_reach_the_geometry_encoder(loaded, tmp_path):
    """A model with a geometry encoder shows its language model the first view alone, and surveys all."""
    for k in range(3):
        Image.effect_noise((80, 60), 90 + k).convert("RGB").save(tmp_path / f"{k}.png")
    views = read_views(tmp_path)
    asked = {"show": lambda piece: None, "max_new_tokens": 3}
    plain = ask(loaded, question_of(loaded, "What is it?", views=views), **asked)
    assert plain.prompt_tokens // 49 == 3
    torch.manual_seed(0)
    geometry, fusion = TinyGeo(heads=()), Add(align="pool")
    model = VLM(loaded.model.encoder, loaded.model.connector, loaded.model.lm, image_size=(112, 112), template="demo",
                geometry=geometry, fusion=fusion).eval()  # fmt: skip
    surveyed = replace(loaded, model=model, processor=replace(loaded.processor, views=model.views))
    given = ask(surveyed, question_of(surveyed, "What is it?", views=views), **asked)
    assert given.prompt_tokens // 49 == 1
    # or all of them, each with its own place in the scene
    shown = question_of(surveyed, "What is it?", views=views, shown="all")
    assert ask(surveyed, shown, **asked).prompt_tokens // 49 == 3 and shown.views.image == [0, 1, 2]
    with pytest.raises(ValueError, match="the model has no geometry encoder, so nothing would see the other views"):
        question_of(loaded, "What is it?", views=views, shown="first")
    with pytest.raises(ValueError, match="give one or the other"):
        question_of(surveyed, "What is it?", views, views)


def test_more_views_than_the_encoder_takes_are_refused(surveying, tmp_path):
    geometry = TinyGeo(heads=())
    geometry.max_views = 2
    loaded = surveying(geometry, Add(align="pool"))
    with pytest.raises(ValueError, match=r"3 views are more than max_views 2; leave some out"):
        question_of(loaded, "What?", views=[np.zeros((32, 32, 3), np.uint8)] * 3)


def test_of_many_pictures_those_are_asked_about_that_see_most(loaded, surveying, monkeypatch):
    without, loaded = loaded, surveying(TinyGeo(), Add(align="pool"))
    pictures = [np.full((32, 32, 3), level, np.uint8) for level in range(6)]
    given = {}

    def chosen(points, confidence, count):
        given.update(points=points, confidence=confidence, count=count)
        return [0, 4]

    monkeypatch.setattr(asking, "choose", chosen)
    assert [int(view[0, 0, 0]) for view in cover(loaded, pictures, 2)] == [0, 4]
    assert given["points"].shape[:1] == given["confidence"].shape[:1] == (6,) and given["count"] == 2
    for one in (surveying(TinyGeo(heads=()), Add(align="pool")), without):
        with pytest.raises(ValueError, match=r"--frames goes by points .*, and .* has none that predicts any; leave"):
            cover(one, pictures, 2)


def test_folders_that_hold_no_views_are_refused(tmp_path):
    with pytest.raises(ValueError, match="holds 0 pictures; give 2 to 32"):
        read_views(tmp_path)
    Image.new("RGB", (80, 60)).save(tmp_path / "a.png")
    with pytest.raises(ValueError, match="holds 1 pictures; give 2 to 32"):
        read_views(tmp_path)
    (tmp_path / "b.png").write_bytes((tmp_path / "a.png").read_bytes()[:60])
    with pytest.raises(ValueError, match=r"view 1 \(.*b.png\): cannot be decoded"):
        read_views(tmp_path)
    (tmp_path / "b.png").unlink()
    (tmp_path / "b.png").symlink_to(tmp_path / "gone.png")
    with pytest.raises(ValueError, match=r"view 1 \(.*b.png\): no such file"):
        read_views(tmp_path)
    (tmp_path / "b.png").unlink()
    Image.new("RGB", (60, 80)).save(tmp_path / "b.png")
    with pytest.raises(ValueError, match=r"x.png is no folder; give one with 2 to 32 views"):
        read_views(tmp_path / "x.png")
    with pytest.raises(ValueError, match="views of sizes 60x80, 80x60 are not of one camera's format"):
        read_views(tmp_path)
