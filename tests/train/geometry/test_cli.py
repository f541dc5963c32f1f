"""`gnomon fit-geometry`: it learns, goes on where it stopped bit for bit, and says what is wrong in one line."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from gnomon.cli.main import main
from gnomon.data.order import Order
from gnomon.data.sample import Sample, Turn
from gnomon.data.sources.scenes.source import Scenes
from gnomon.train.callbacks.checkpoint import discard
from gnomon.train.geometry.feed import Feed, recoloured, scene
from gnomon.train.geometry.module import losses
from gnomon.train.runlog import read
from gnomon.vlm.geometry.known import Known
from gnomon.vlm.geometry.tinygeo import TinyGeo
from gnomon.vlm.layout import ViewsSpec
from gnomon.vlm.multiview import pose, rays
from gnomon.vlm.multiview.losses.targets import normalise

CONFIG = Path(__file__).parents[3] / "configs/fit_geometry/tinygeo.yaml"


def fit(out: Path, *more: str) -> int:
    few = ["--steps", "6", "--batch", "2", "--warmup", "1", "--workers", "0", "--checkpoint_every", "3"]
    small = ["--data.init_args.count", "5", "--data.init_args.size", "[48, 56]", "--accelerator", "cpu"]
    return main(["fit-geometry", "--config", str(CONFIG), "--out", str(out), *few, *small, *more])


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("geometry") / "whole"
    assert fit(out) == 0
    return out


def weights(out: Path) -> dict[str, torch.Tensor]:
    return load_file(out / "encoder" / "model.safetensors")


def test_a_resumed_run_ends_where_an_unbroken_one_does(whole, tmp_path):
    out = tmp_path / "half"
    assert fit(out, "--steps", "6") == 0
    # as if it had been killed behind step 3
    for path in sorted((out / "checkpoints").glob("step-*"))[1:]:
        discard(path)
    assert fit(out, "--resume") == 0
    again, expected = weights(out), weights(whole)
    assert again.keys() == expected.keys() and all(torch.equal(again[k], expected[k]) for k in expected)
    assert [row["step"] for row in read(out / "metrics.jsonl")] == [
        row["step"] for row in read(whole / "metrics.jsonl")
    ]


def test_what_is_saved_is_loaded_by_the_encoder_itself(whole):
    encoder = TinyGeo(weights=str(whole / "encoder"))
    state = weights(whole)
    assert all(torch.equal(value, state[name]) for name, value in encoder.state_dict().items())
    assert encoder.frozen and not any(p.requires_grad for p in encoder.parameters())


def test_the_loss_falls_on_one_scene():
    torch.manual_seed(0)
    encoder = TinyGeo(frozen=False)
    feed = Feed(Scenes(count=1, size=(48, 48), views=2), ViewsSpec(8), Order(1, batch=1), 1)
    batch, optimizer = feed[0], torch.optim.AdamW(encoder.parameters(), lr=2e-3)
    first = None
    for _ in range(40):
        terms = losses(encoder, batch)
        first = first or {name: float(term.detach()) for name, term in terms.items()}
        optimizer.zero_grad()
        sum(terms.values()).backward()
        optimizer.step()
    assert all(float(terms[name].detach()) < 0.5 * first[name] for name in ("camera", "depth", "points"))


def test_perfect_predictions_cost_nothing_but_confidence():
    """The targets are those of an encoder that knows: depth and points over the mean distance, cameras exactly."""

    class Perfect(Known):
        def forward(self, scenes, *, layers=(), heads=()):
            given = batch
            out = super().forward(given, layers=layers, heads=heads)
            size = tuple(given.depth.shape[2:])
            world = rays.points(rays.from_cameras(given.extrinsics, given.intrinsics, size=size), given.depth)
            truth = normalise(given.extrinsics, world, given.depth, given.depth > 0)
            out.depth, out.points = truth.depth, truth.points
            out.pose = pose.encode(truth.extrinsics, given.intrinsics, size=size)
            return out

    batch = Feed(Scenes(count=2, size=(48, 48), views=3), ViewsSpec(8), Order(2, batch=2), 1)[0]
    terms = losses(Perfect(patch=8), batch)
    assert terms["camera"] < 1e-6 and abs(terms["depth"]) < 1e-6 and abs(terms["points"]) < 1e-6


def test_steps_have_the_same_scenes_in_any_order():
    source = Scenes(count=5, size=(48, 48), views=(2, 3))
    feed = Feed(source, ViewsSpec(8), Order(5, seed=1, batch=2), 9, recolour=True)
    a, b = feed[4], feed[4]
    assert torch.equal(a.images, b.images) and torch.equal(a.depth, b.depth)
    order = Order(5, seed=1, batch=2).ids(4)
    assert torch.equal(a.depth[0, :2], scene(source[order[0]], ViewsSpec(8)).depth[:2])


def test_recolouring_keeps_what_is_seen_where():
    images = torch.rand(2, 3, 3, 8, 8)
    found = recoloured(images, torch.Generator().manual_seed(0))
    assert found.min() >= 0 and found.max() <= 1 and not torch.equal(found, images)
    # one trade of channels for all views of a scene: sorted along channels, views stay affine maps of what they were
    for b in range(2):
        for s in range(3):
            x, y = images[b, s].sort(0).values.flatten(), found[b, s].sort(0).values.flatten()
            inside = (y > 0) & (y < 1)
            assert torch.corrcoef(torch.stack([x[inside], y[inside]]))[0, 1] > 0.999


def test_mistakes_are_told_in_one_line(tmp_path, capsys, whole):
    assert fit(whole) == 2
    assert "is not empty; go on with --resume" in capsys.readouterr().err
    assert fit(tmp_path / "a", "--encoder.init_args.frozen", "true") == 2
    assert "TinyGeo is frozen; set encoder.init_args.frozen to false" in capsys.readouterr().err
    with pytest.raises(ValueError, match="sample x lacks intrinsics, extrinsics, depth; an encoder learns from"):
        scene(Sample("x", (Turn("user", "?"),)), ViewsSpec(8))


def test_the_committed_configuration_is_complete():
    given = yaml.safe_load(CONFIG.read_text())
    assert given["encoder"]["init_args"]["frozen"] is False and given["data"]["class_path"].endswith("Scenes")
