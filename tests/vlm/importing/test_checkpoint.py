"""Imported models against transformers' own, on the same pictures: tokens, pixels, logits, generation, reductions."""

from __future__ import annotations

import importlib
import inspect
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from gnomon.data.collate import collate
from gnomon.data.processor import Processor
from gnomon.data.sample import Sample, Turn
from gnomon.vlm.freeze import freeze
from gnomon.vlm.generate import generate
from gnomon.vlm.importing.checkpoint import Checkpoint, convert, read
from gnomon.vlm.layout import Batch, Kind
from gnomon.vlm.model import VLM
from gnomon.vlm.reduction import base
from gnomon.vlm.reduction.base import Stage, TokenReducer
from gnomon.vlm.save import describe, load, save

TEMPLATES = {"next-mistral": "mistral", "qwen": "qwen2.5_vl", "qwen-tied": "qwen2.5_vl"}
NAMES = ("llava", "llava-pad", "next", "next-mistral", "qwen", "qwen-tied")
FAMILIES = ("llava", "next", "qwen")
SHAPES = [(24, 24), (50, 37), (31, 90), (100, 22), (10, 13), (23, 47), (200, 40)]
WORDS = ["What is this?", " two  spaces,\nand a line", "Compare them!"]


@dataclass
class Pair:
    theirs: Checkpoint
    ours: VLM
    processor: Processor

    def batch(self, *samples: Sample) -> Batch:
        examples = [self.processor.example(sample, train=False) for sample in samples]
        return collate(examples, pad_id=self.processor.pad_id, side="left")

    def inputs(self, *samples: Sample) -> dict[str, Any]:
        """What transformers' processor makes of it, given the text that its own chat template makes."""
        texts, images = [], []
        for sample in samples:
            marks, text = sample.turns[0].text.count("<image>\n"), sample.turns[0].text.replace("<image>\n", "")
            content = [{"type": "image"}] * marks + [{"type": "text", "text": text}]
            message = [{"role": "user", "content": content}]
            texts.append(self.theirs.processor.apply_chat_template(message, add_generation_prompt=True))
            images += [Image.fromarray(image) for image in sample.images]
        given = {"images": images} if images else {}
        return dict(self.theirs.processor(text=texts, **given, padding=True, padding_side="left", return_tensors="pt"))


@pytest.fixture(scope="session")
def pair(checkpoint: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Pair]:
    made: dict[str, Pair] = {}

    def make(name: str) -> Pair:
        if name not in made:
            theirs = read(str(checkpoint(name)))
            out = tmp_path_factory.mktemp("imported") / name
            ours = load(convert(theirs, out, template=TEMPLATES.get(name, "llava")))
            theirs.model.eval()
            made[name] = Pair(theirs, ours, Processor(ours.tokenizer, ours.template, ours.image, max_length=4096))
        made[name].ours.reducers = []
        return made[name]

    return make


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Smooth, with noise: what interpolation does matters."""
    noise = np.random.default_rng(seed).integers(0, 90, (height, width, 3))
    ramp = np.add.outer(np.linspace(0, 80, height), np.linspace(0, 80, width))[..., None]
    return (noise + ramp).astype(np.uint8)


def question(*images: np.ndarray, text: str = "What is this?", name: str = "q") -> Sample:
    return Sample(name, (Turn("user", "<image>\n" * len(images) + text),), images)


ROWS = [
    question(picture(30, 60), text="What?", name="one"),
    question(picture(40, 20, 1), picture(26, 31, 2), text="Compare them!", name="two"),
    question(text="No picture at all?", name="none"),
    question(picture(60, 30, 3), text="A much longer question, so that rows are padded.", name="long"),
]


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "x".join(map(str, shape)))
@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_one_picture_gives_the_same_tokens_and_logits(name: str, shape: tuple[int, int], pair):
    both = pair(name)
    sample = question(picture(*shape), text=WORDS[sum(shape) % 3])
    batch, inputs = both.batch(sample), both.inputs(sample)
    token = both.theirs.model.config.image_token_id
    assert torch.equal(batch.ids.masked_fill(batch.layout.is_image, token), inputs["input_ids"])
    theirs = both.theirs.model(**inputs).logits
    torch.testing.assert_close(both.ours(batch).logits, theirs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_the_picture_matters(name: str, pair):
    """Or equal logits would prove little."""
    both = pair(name)
    first, second = (both.ours(both.batch(question(picture(40, 40, seed)))).logits[0, -1] for seed in (0, 1))
    assert (first - second).abs().max() > 1e-2


@pytest.mark.parametrize("name", NAMES)
def test_pixels_are_those_of_the_image_processor(name: str, pair):
    both = pair(name)
    for shape in SHAPES:
        sample = question(picture(*shape))
        theirs = both.inputs(sample)["pixel_values"]
        ours = [(p / 255 - both.ours.mean) / both.ours.std for p in both.batch(sample).pixels]
        if name.startswith("qwen"):
            ours, theirs = [both.ours.encoder._patches(ours[0][None])], theirs[None]
        elif name.startswith("next"):
            theirs = theirs[0]
            # crops that hold no token are not made here
            assert 1 < len(ours) <= len(theirs)
            theirs = theirs if len(ours) == len(theirs) else [t for t in theirs if any(_close(t, o) for o in ours)]
        assert len(ours) == len(theirs)
        for our, their in zip(ours, theirs):
            assert _close(our, their), shape


def _close(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Far below one grey level of 255."""
    return a.shape == b.shape and bool(((a - b).abs() < 1e-5).all())


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_rows_of_a_batch_with_several_pictures_or_none(name: str, pair):
    both = pair(name)
    together = both.batch(*ROWS)
    logits = both.ours(together).logits
    for i, row in enumerate(ROWS):
        theirs = both.theirs.model(**both.inputs(row)).logits[0]
        torch.testing.assert_close(logits[i][together.layout.visible[i]], theirs, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_greedy_generation_token_for_token(name: str, pair):
    both = pair(name)
    found = generate(both.ours, both.batch(*ROWS), max_new_tokens=12, stop=())
    for i, row in enumerate(ROWS):
        inputs = both.inputs(row)
        options = {
            "do_sample": False,
            "max_new_tokens": 12,
            "min_new_tokens": 12,
            "pad_token_id": 0,
            "eos_token_id": None,
        }
        theirs = both.theirs.model.generate(**inputs, **options)[0, inputs["input_ids"].shape[1] :]
        assert found[i].ids == theirs.tolist()


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_a_padded_batch_of_transformers(name: str, pair):
    both = pair(name)
    rows = [ROWS[0], ROWS[3]]
    inputs = both.inputs(*rows)
    batch = both.batch(*rows)
    theirs = both.theirs.model(**inputs).logits
    if name.startswith(("llava", "next")):
        # without them padding would count, in transformers
        position = (inputs["attention_mask"].cumsum(1) - 1).clamp(min=0)
        theirs = both.theirs.model(**inputs, position_ids=position).logits
    else:
        positions, _ = both.theirs.model.model.get_rope_index(
            inputs["input_ids"],
            image_grid_thw=inputs["image_grid_thw"],
            attention_mask=inputs["attention_mask"],
            mm_token_type_ids=inputs["mm_token_type_ids"],
        )
        seen = batch.layout.visible
        assert torch.equal(batch.layout.position[:, seen], positions[:, seen])
    seen = batch.layout.visible
    torch.testing.assert_close(both.ours(batch).logits[seen], theirs[seen], atol=2e-5, rtol=1e-4)


def members() -> list[type[TokenReducer]]:
    found = []
    for path in sorted(Path(base.__file__).parent.glob("*.py")):
        module = importlib.import_module(f"gnomon.vlm.reduction.{path.stem}")
        own = [v for v in vars(module).values() if isinstance(v, type) and v.__module__ == module.__name__]
        found += [cls for cls in own if issubclass(cls, TokenReducer) and cls is not TokenReducer]
    return found


def made(cls: type[TokenReducer], ratio: float = 0.5) -> TokenReducer:
    """With stages early enough for a language model of six layers."""
    early = {"layers": (1, 2, 4), "layer": 2}
    known = inspect.signature(cls.__init__).parameters
    return cls(ratio, **{name: value for name, value in early.items() if name in known})


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("cls", members(), ids=lambda cls: cls.__name__)
@torch.no_grad()
def test_every_reducer_runs_on_every_family(cls: type[TokenReducer], name: str, pair):
    both = pair(name)
    batch = both.batch(*ROWS)
    expected = both.ours(batch).logits
    both.ours.reducers = [made(cls, 1.0)]
    assert torch.equal(both.ours(batch).logits, expected), "ratio 1 is the model itself"
    both.ours.reducers = [made(cls)]
    if "xyz" in cls.needs:
        with pytest.raises(ValueError, match=r"needs .*xyz"):
            both.ours(batch)
        return
    read_ = both.ours.read(batch)
    text = read_.carry(batch.ids, -1)
    for i, row in enumerate(ROWS):
        before, after = batch.layout.kind[i], read_.after.kind[i]
        assert batch.ids[i][before == Kind.TEXT].tolist() == text[i][after == Kind.TEXT].tolist()
        # row ends have no cell and stay
        ends = [(layout.is_image[i] & (layout.cell[i, :, 0] < 0)).sum() for layout in (batch.layout, read_.after)]
        assert ends[0] <= ends[1]
        if row.images and not cls.adaptive and cls.stage is not Stage.PIXEL:
            assert int((after == Kind.IMAGE).sum()) < int((before == Kind.IMAGE).sum())
        alone = both.ours.read(both.batch(row))
        found = read_.hidden[i][read_.after.visible[i]]
        torch.testing.assert_close(found, alone.hidden[0][alone.after.visible[0]], atol=5e-5, rtol=1e-3)
    together = generate(both.ours, batch, max_new_tokens=4, stop=())
    assert [len(g.ids) for g in together] == [4] * 4


@pytest.mark.parametrize("name", FAMILIES)
def test_an_imported_model_trains_and_is_saved_again(name: str, pair, tmp_path):
    both = pair(name)
    ours = load(save(both.ours, tmp_path / "again"))
    assert describe(ours) == describe(both.ours)
    freeze(
        ours, ["connector.*" if name == "llava" else "image_newline" if name == "next" else "encoder.tower.merger.*"]
    )
    ours.train()
    sample = question(picture(30, 60))
    answered = replace(sample, turns=(*sample.turns, Turn("assistant", "A ramp.")))
    batch = collate([both.processor.example(answered, train=True)], pad_id=0)
    loss, count = ours.loss(batch)
    loss.backward()
    trained = [p for p in ours.parameters() if p.requires_grad]
    assert int(count) > 0 and trained and all(bool(p.grad.abs().sum() > 0) for p in trained)


def test_only_known_architectures(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "blip", "architectures": ["BlipModel"]}))
    with pytest.raises(
        ValueError, match=r"cannot be imported: it is a 'blip', not one of llava, llava_next, qwen2_5_vl"
    ):
        read(str(tmp_path))
    with pytest.raises(ValueError, match="cannot be imported"):
        read(str(tmp_path / "nowhere"))


def edited(source: Path, target: Path, file: str, **values: Any) -> str:
    shutil.copytree(source, target)
    path = target / file
    config = json.loads(path.read_text())
    place = config["image_processor"] if file == "processor_config.json" else config
    place.update(values)
    path.write_text(json.dumps(config))
    return str(target)


@pytest.mark.parametrize(
    ("name", "file", "values", "says"),
    [
        ("llava", "config.json", {"vision_feature_layer": [-2]}, "side by side"),
        ("llava", "config.json", {"vision_feature_select_strategy": "full"}, "other tokens than its patches"),
        ("llava", "config.json", {"projector_hidden_act": "relu"}, "not an MLP with GELU"),
        ("llava", "processor_config.json", {"resample": 2}, "resamples with filter 2"),
        ("llava", "processor_config.json", {"do_normalize": False}, "do_normalize false"),
        ("llava", "processor_config.json", {"rescale_factor": 1.0}, "divides pixels by 1;"),
        ("next", "processor_config.json", {"image_grid_pinpoints": [[24, 24]]}, "disagree"),
        ("qwen", "processor_config.json", {"merge_size": 1}, "disagree"),
    ],
)
def test_what_has_no_counterpart_is_named(name, file, values, says, checkpoint, tmp_path):
    path = edited(checkpoint(name), tmp_path / "edited", file, **values)
    with pytest.raises(ValueError, match=says) as caught:
        convert(read(path), tmp_path / "out", template="llava")
    assert "\n" not in str(caught.value) and not (tmp_path / "out").exists()


def test_weights_of_other_shapes_are_refused(checkpoint, tmp_path):
    path = edited(checkpoint("llava"), tmp_path / "edited", "config.json", vision_feature_layer=[-2, -1])
    with pytest.raises(ValueError, match=r"do not have the shapes of config\.json"):
        read(path)


def test_missing_weights_are_named(checkpoint, tmp_path):
    from safetensors.torch import load_file, save_file

    path = tmp_path / "cut"
    shutil.copytree(checkpoint("llava"), path)
    state = load_file(path / "model.safetensors")
    name = next(name for name in state if "linear_1.weight" in name)
    save_file({k: v for k, v in state.items() if k != name}, path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"lacks 1 weights, such as .*linear_1.weight"):
        read(str(path))


@pytest.mark.parametrize("dtype", ["bfloat16"])
@pytest.mark.parametrize("name", FAMILIES)
def test_half_precision_stays(name: str, dtype: str, pair, checkpoint, tmp_path):
    theirs = read(str(checkpoint(name)))
    theirs.model.to(getattr(torch, dtype))
    theirs.model.save_pretrained(tmp_path / "half")
    theirs.processor.save_pretrained(tmp_path / "half")
    # loaded anew: `to` has rounded its rotary frequencies too
    theirs = read(str(tmp_path / "half"))
    ours = load(convert(theirs, tmp_path / "out", template=TEMPLATES.get(name, "llava")))
    assert {p.dtype for p in ours.parameters()} == {getattr(torch, dtype)}
    both = Pair(theirs, ours, Processor(ours.tokenizer, ours.template, ours.image, max_length=4096))
    sample = question(picture(30, 60))
    with torch.no_grad():
        inputs = both.inputs(sample)
        expected = theirs.model.eval()(
            **inputs | {"pixel_values": inputs["pixel_values"].to(theirs.model.dtype)}
        ).logits
        torch.testing.assert_close(ours(both.batch(sample)).logits, expected, atol=0.1, rtol=0.05)


def test_pinpoints_and_the_rest_are_on_record(pair):
    spec = describe(pair("next").ours)
    assert spec["image_fit"] == "anyres" and [24, 72] in spec["image_canvases"]
    spec = describe(pair("qwen").ours)
    assert (spec["image_positions"], spec["image_least"], spec["image_limit"]) == ("grid", 256, 1600)
    assert "image_positions" not in describe(pair("llava").ours)
