"""What every auxiliary loss promises; the members are whatever stands in vlm/auxiliary.

In a tiny model, on pictures that are not square. Members that take an encoder are asked with one and without.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from sequences import cells, padded, picture, text
from torch import Tensor
from transformers import (
    AutoModelForDepthEstimation,
    CLIPVisionConfig,
    DepthAnythingConfig,
    LlavaForConditionalGeneration,
)

from gnomon.vlm.auxiliary import base
from gnomon.vlm.auxiliary.base import AuxLoss
from gnomon.vlm.encoders.hf import HFVision
from gnomon.vlm.encoders.timm import Timm
from gnomon.vlm.export import hf
from gnomon.vlm.export.hf import compare, export_hf
from gnomon.vlm.freeze import freeze
from gnomon.vlm.layout import Batch, TokenLayout, Views
from gnomon.vlm.model import VLM
from gnomon.vlm.reduction.pyramiddrop import PyramidDrop
from gnomon.vlm.save import load, save

SIZE = 24, 40
SMALL = {"layers": [0, 2], "grid": [2, 3], "heads": 2, "head_width": 4, "width": 8}
TRUNK = {"model_type": "dinov2", "hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2, "image_size": 56}
TRUNK |= {"patch_size": 14, "out_indices": [1, 2, 3, 4], "reshape_hidden_states": False}


def members() -> list[type[AuxLoss]]:
    found = []
    for path in sorted(Path(base.__file__).parent.glob("*.py")):
        module = importlib.import_module(f"gnomon.vlm.auxiliary.{path.stem}")
        own = [v for v in vars(module).values() if isinstance(v, type) and v.__module__ == module.__name__]
        found += [cls for cls in own if issubclass(cls, AuxLoss) and cls is not AuxLoss]
    return found


def takes(cls: type[AuxLoss]) -> set[str]:
    return set(inspect.signature(cls.__init__).parameters)


CASES = [(cls, kind) for cls in members() for kind in ("views", "encoder") if kind == "views" or kind in takes(cls)]
every = pytest.mark.parametrize(("cls", "kind"), CASES, ids=lambda value: getattr(value, "__name__", value))


@pytest.fixture(scope="session")
def estimator(tmp_path_factory) -> dict[str, Any]:
    """A tiny Depth Anything, as a file would name it."""
    torch.manual_seed(3)
    neck = {"reassemble_hidden_size": 16, "neck_hidden_sizes": [4, 8, 8, 8], "fusion_hidden_size": 8}
    config = DepthAnythingConfig(backbone_config=TRUNK, head_hidden_size=8, **neck)
    path = tmp_path_factory.mktemp("depth")
    AutoModelForDepthEstimation.from_config(config).save_pretrained(path)
    return {"class_path": "gnomon.vlm.geometry.depth_only.DepthOnly", "init_args": {"path": str(path)}}


@pytest.fixture
def build(tiny, estimator) -> Callable[..., VLM]:
    def make(cls: type[AuxLoss] | None = None, kind: str = "views", **options) -> VLM:
        torch.manual_seed(0)
        vit = {"img_size": list(SIZE), "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2}
        given = {"encoder": Timm("vit_tiny_patch16_224", args=vit), "image_size": SIZE, **options}
        model = tiny(lm={"num_hidden_layers": 3}, **given)
        if cls is not None:
            torch.manual_seed(1)
            asked = {**SMALL, **({"encoder": estimator} if kind == "encoder" else {})}
            model.teach([cls(**{name: value for name, value in asked.items() if name in takes(cls)})])
        return model.eval()

    return make


ROWS = [([3, 4, 11, 12], [1], 1), ([7, 8, 9], [2], 0), ([5, 6, 7, 13, 14], [3, 4], 1), ([3, 4, 5, 6], [], 0)]
"""Per row: text, images, and of how many of these there is depth."""


def views(seed: int, first: int, shown: int) -> Views:
    draw = torch.Generator().manual_seed(100 + seed)
    depth = 2 + 4 * torch.rand(shown, *SIZE, generator=draw)
    depth[0, :8, :8] = 0
    pixels = torch.zeros(shown, 3, *SIZE, dtype=torch.uint8)
    return Views(pixels, list(range(first, first + shown)), depth=depth)


def batch_of(model: VLM, rows: list[tuple] = ROWS) -> Batch:
    """Right-padded rows: images, and text whose second half is the answer."""
    built, pixels, known = [], [], []
    for words, images, shown in rows:
        if shown:
            known.append(views(images[0], len(pixels), shown))
        slots = [slot for k in range(len(images)) for slot in cells(k, model.image.grid(*SIZE))]
        built.append(slots + text(words, asked=len(words) // 2))
        pixels += [picture(SIZE, seed) for seed in images]
    return padded(built, pixels, views=known)


def packed(model: VLM, rows: list[tuple]) -> Batch:
    """The same samples in one row."""
    singles = [batch_of(model, [row]) for row in rows]
    parts, pixels, known = [], [], []
    for number, one in enumerate(singles):
        layout, before = one.layout, len(pixels)
        image = torch.where(layout.image >= 0, layout.image + before, -1)
        document = torch.full_like(layout.kind, number)
        parts.append((one.ids, one.labels, layout.kind, image, layout.cell, layout.position, document))
        known += [replace(scene, image=[k + before for k in scene.image]) for scene in one.views]
        pixels += one.pixels
    ids, labels, *layout = (torch.cat(column, 1) for column in zip(*parts))
    return Batch(ids, labels, TokenLayout(*layout), pixels, [f"s{i}" for i in range(len(rows))], views=known)


def extra(model: VLM, batch: Batch) -> Tensor:
    """What there is to learn beside the answers."""
    return torch.as_tensor(model.read(batch).loss)


def test_members_are_found():
    assert "OLA" in {cls.__name__ for cls in members()}


@every
def test_it_is_there_in_training_and_changes_nothing_else(cls, kind, build):
    plain, model = build(), build(cls, kind)
    batch = batch_of(model)
    assert extra(model.train(), batch) > 0
    with torch.no_grad():
        assert extra(model, batch) == 0
    assert torch.equal(model(batch).logits, plain.train()(batch).logits)
    total, count = model.loss(batch)
    assert total.item() == pytest.approx((plain.loss(batch)[0] + count * extra(model, batch)).item(), rel=1e-6)
    assert torch.equal(model.eval().loss(batch)[0], plain.eval().loss(batch)[0])


@every
def test_its_share_of_a_step_does_not_depend_on_the_number_of_targets(cls, kind, build):
    model = build(cls, kind).train()
    batch = replace(batch_of(model), targets=2.0)
    total, count = model.loss(batch)
    alone, _ = build().train().loss(batch)
    assert (total / 2).item() == pytest.approx((alone / 2 + extra(model, batch)).item(), rel=1e-6)
    assert count != 2


@every
def test_gradients_reach_every_parameter_and_the_layers_below(cls, kind, build):
    model = build(cls, kind).train()
    extra(model, batch_of(model)).backward()
    lost = [name for name, p in model.aux.named_parameters() if p.grad is None or not p.grad.any()]
    assert lost == [] and all(bool(p.grad.isfinite().all()) for p in model.aux.parameters())
    top = max(model.aux[0].layers)
    for below in (model.connector.layers[0], model.lm.layers[top].mlp.up_proj):
        assert bool(below.weight.grad.any())
    assert model.lm.model.model.norm.weight.grad is None


UNTOLD = [(*case, ROWS[3:]) for case in CASES] + [(cls, kind, ROWS[1:2]) for cls, kind in CASES if kind == "views"]


@pytest.mark.parametrize(("cls", "kind", "rows"), UNTOLD)
def test_without_a_target_it_is_zero_and_every_parameter_has_a_gradient(cls, kind, rows, build):
    """Text alone; images that show no view."""
    model = build(cls, kind).train()
    loss = extra(model, batch_of(model, rows))
    loss.backward()
    assert loss == 0
    assert all(p.grad is not None and not p.grad.any() for p in model.aux.parameters())


@pytest.mark.parametrize("cls", members(), ids=lambda cls: cls.__name__)
def test_what_has_no_target_does_not_shrink_the_others(cls, build):
    model = build(cls).train()
    some = [row for row in ROWS if row[2]]
    torch.testing.assert_close(extra(model, batch_of(model)), extra(model, batch_of(model, some)), atol=1e-6, rtol=1e-5)


@every
def test_packed_samples_are_the_samples(cls, kind, build):
    model = build(cls, kind).train()
    together, apart = packed(model, ROWS[:3]), batch_of(model, ROWS[:3])
    torch.testing.assert_close(extra(model, together), extra(model, apart), atol=1e-6, rtol=1e-5)


@every
def test_images_that_lost_tokens_on_the_way(cls, kind, build):
    model = build(cls, kind, reducers=[PyramidDrop(ratios=[0.5, 0.1], layers=[1, 2])]).train()
    assert bool(extra(model, batch_of(model)).isfinite())


@every
def test_recomputing_layers_gives_the_same_gradients(cls, kind, build):
    gradients = []
    for checkpointing in (False, True):
        model = build(cls, kind).train()
        model.lm.checkpointing = checkpointing
        extra(model, batch_of(model)).backward()
        gradients.append([p.grad for p in (*model.aux.parameters(), *model.connector.parameters())])
    for plain, recomputed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, recomputed, atol=1e-6, rtol=1e-4)


@every
def test_only_declared_parameters_move(cls, kind, build):
    model = build(cls, kind).train()
    freeze(model, ["aux.*"])
    before = {name: p.detach().clone() for name, p in model.state_dict().items()}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    model.loss(batch_of(model))[0].backward()
    optimizer.step()
    moved = {name for name, p in model.state_dict().items() if not torch.equal(p, before[name])}
    assert moved and all(name.startswith("aux.") for name in moved)


@every
def test_it_learns(cls, kind, build):
    """The heads alone, on four images, whose hidden states stay what they are."""
    model = build(cls, kind).train()
    freeze(model, ["aux.*"])
    batch, losses = batch_of(model), []
    optimizer = torch.optim.AdamW(model.aux.parameters(), lr=1e-2)
    for _ in range(30):
        loss = extra(model, batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]


@every
def test_options_and_weights_come_back_for_training_and_stay_away_otherwise(cls, kind, build, tmp_path):
    model = build(cls, kind)
    save(model, tmp_path / "m")
    batch = batch_of(model)
    again = load(tmp_path / "m", aux=True)
    assert [loss.spec() for loss in again.aux] == [loss.spec() for loss in model.aux]
    assert torch.equal(extra(again.train(), batch), extra(model.train(), batch))
    bare = load(tmp_path / "m")
    assert not bare.aux and not any(name.startswith("aux.") for name in bare.state_dict())
    with torch.no_grad():
        assert torch.equal(bare(batch).logits, model.eval()(batch).logits)
    save(bare, tmp_path / "n")
    assert not any(name.startswith("aux.") for name in load_file(tmp_path / "n" / "model.safetensors"))


@every
def test_export_leaves_it_out_and_changes_no_logits(cls, kind, build, tmp_path, monkeypatch):
    vision = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
    tower = HFVision(config=CLIPVisionConfig(**vision, image_size=32, patch_size=8).to_dict(), layer=-2)
    model = build(cls, kind, encoder=tower, image_size=(32, 32))
    path = export_hf(model, tmp_path / "out")

    def reloaded(path: Path, ids: Tensor, pixels: Tensor) -> Tensor:
        # here, which spares the imports of a fresh process
        return LlavaForConditionalGeneration.from_pretrained(path).eval()(input_ids=ids, pixel_values=pixels).logits

    monkeypatch.setattr(hf, "_reloaded", reloaded)
    assert not any("aux" in name for name in load_file(path / "model.safetensors"))
    assert compare(path, model) <= 1e-5


@every
def test_in_half_precision(cls, kind, build):
    model = build(cls, kind).to(torch.bfloat16).train()
    loss = extra(model, batch_of(model))
    loss.backward()
    assert bool(loss.isfinite()) and all(bool(p.grad.isfinite().all()) for p in model.aux.parameters())


@every
def test_in_mixed_precision(cls, kind, build):
    model = build(cls, kind).train()
    batch = batch_of(model)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = extra(model, batch)
    assert loss.dtype == torch.float32 and loss.item() == pytest.approx(extra(model, batch).item(), rel=0.02)


@every
def test_layers_that_the_language_model_has_not_are_refused(cls, kind, build, estimator):
    with pytest.raises(ValueError, match=r"layers \[3\] are not some of 0 to 2") as error:
        build().teach([cls(layers=[3], **({"encoder": estimator} if kind == "encoder" else {}))])
    assert "\n" not in str(error.value)
