"""`gnomon fit-geometry`: it learns, goes on where it stopped bit for bit, and says what is wrong in one line."""

from __future__ import annotations

import errno
import json
import math
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from lightning import Trainer
from safetensors.torch import load_file

from gnomon.cli.main import main
from gnomon.data.order import Order
from gnomon.data.sample import Sample, Turn
from gnomon.data.sources.scenes.source import Scenes
from gnomon.train.callbacks.checkpoint import discard, newest
from gnomon.train.geometry.feed import Feed, recoloured, scene
from gnomon.train.geometry.module import losses
from gnomon.train.runlog import read
from gnomon.vlm.geometry.base import GeometryInput
from gnomon.vlm.geometry.horizonstream import HorizonStream
from gnomon.vlm.geometry.known import Known
from gnomon.vlm.geometry.plane_sweep import PlaneSweep
from gnomon.vlm.geometry.tinygeo import TinyGeo
from gnomon.vlm.layout import ViewsSpec
from gnomon.vlm.multiview import pose, rays
from gnomon.vlm.multiview.losses.targets import normalise

PI3 = ["--encoder", "gnomon.vlm.geometry.pi3.Pi3", "--encoder.init_args.frozen", "false"]
PI3 += ["--encoder.init_args.width", "32", "--encoder.init_args.attention_heads", "2"]
PI3 += ["--encoder.init_args.depth", "2", "--encoder.init_args.embed_depth", "1"]
PI3 += ["--encoder.init_args.decoder_width", "32", "--encoder.init_args.camera_width", "32"]
DEPTH = ["--encoder", "gnomon.vlm.geometry.depth_only.DepthOnly", "--encoder.init_args.frozen", "false"]
DEPTH += ["--encoder.init_args.config", '{"model_type": "dpt", "hidden_size": 24, "num_attention_heads": 2}']
DA3 = ["--encoder", "gnomon.vlm.geometry.depth_anything_3.DepthAnything3", "--encoder.init_args.frozen", "false"]
DA3 += ["--encoder.init_args.size", "small"]

CONFIG = Path(__file__).parents[3] / "configs/fit_geometry/tinygeo.yaml"


def fit(out: Path, *more: str) -> int:
    few = ["--steps", "6", "--batch", "2", "--warmup", "1", "--workers", "0", "--checkpoint_every", "3"]
    few += ["--held_out", "3"]
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


def test_the_encoder_is_measured_on_scenes_that_it_was_not_taught(whole, tmp_path, capsys):
    found = json.loads((whole / "held_out.json").read_text())
    assert (found["steps"], found["split"], found["scenes"]) == (6, "test", 3)
    encoder = TinyGeo(weights=str(whole / "encoder"))
    held_out = Scenes(count=3, size=(48, 56), views=(2, 4), split="test")
    errors = []
    for sample in held_out:
        true = sample.geometry.depth
        images = torch.from_numpy(np.stack(sample.geometry.views)).permute(0, 3, 1, 2)[None] / 255
        given = GeometryInput(images, torch.ones(images.shape[:2], dtype=torch.bool))
        depth, there = encoder.measure(given, heads=["depth"]).depth[0].numpy(), true > 0
        depth = depth * np.median(true[there]) / np.median(depth[there])
        errors.append(np.mean(np.abs(depth - true)[there] / true[there]))
    assert found["AbsRel"] == pytest.approx(np.mean(errors), rel=1e-4)
    assert found.keys() >= {"AUC@30", "AbsRel of one view", "Chamfer of points"}
    # how it is measured is no part of what was learned
    out = tmp_path / "run"
    shutil.copytree(whole, out)
    capsys.readouterr()
    assert fit(out, "--resume", "--held_out", "2") == 0
    assert "metrics of 2 held-out scenes of the test split: AUC@30 " in capsys.readouterr().err
    assert json.loads((out / "held_out.json").read_text())["scenes"] == 2


def test_an_encoder_that_is_told_of_cameras_learns_depth_and_points_by_them(tmp_path, capsys):
    sweep = ["--encoder", "gnomon.vlm.geometry.plane_sweep.PlaneSweep", "--encoder.init_args.frozen", "false"]
    assert fit(tmp_path / "run", *sweep) == 0
    rows = read(tmp_path / "run" / "metrics.jsonl")
    assert rows and rows[-1].keys() >= {"depth", "points"} and not rows[-1].keys() & {"camera", "scale"}
    found = json.loads((tmp_path / "run" / "held_out.json").read_text())
    assert found["AbsRel"] > 0 and "AUC@30" not in found
    assert PlaneSweep(weights=str(tmp_path / "run" / "encoder")).frozen


@pytest.mark.parametrize("encoder", ["tinygeo.TinyGeo", "plane_sweep.PlaneSweep"])
def test_half_precision_leaves_depth_and_cameras_alone(tmp_path, monkeypatch, encoder):
    given, lens = [], Scenes(count=5, size=(48, 56), views=(2, 4))[0].geometry.intrinsics[0]

    def seen(made, batch):
        given.append(batch)
        assert torch.get_default_dtype() == torch.float32 and next(made.parameters()).dtype == torch.bfloat16
        return losses(made, batch)

    monkeypatch.setattr("gnomon.train.geometry.module.losses", seen)
    options = ["--encoder", f"gnomon.vlm.geometry.{encoder}", "--encoder.init_args.frozen", "false"]
    assert fit(tmp_path / "run", *options, "--precision", "bf16-true", "--steps", "2") == 0
    for batch in given:
        assert {batch.depth.dtype, batch.extrinsics.dtype, batch.intrinsics.dtype} == {torch.float32}
    exact = torch.from_numpy(lens).float()
    assert not torch.equal(exact.bfloat16().float(), exact)
    assert (torch.cat([x.intrinsics.flatten(0, 1) for x in given]) == exact).all((-2, -1)).any()


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--held_out", "0"), None),
        (("--data.init_args.split", "test"), "not measured: Scenes has no test split beside what it was trained on"),
    ],
)
def test_no_encoder_is_measured_on_what_it_was_taught_or_unasked(tmp_path, capsys, options, told):
    assert fit(tmp_path / "run", *options) == 0
    said = capsys.readouterr().err
    assert "metrics of" not in said and ("not measured: " in said) == (told is not None) and (told or "") in said
    assert not (tmp_path / "run" / "held_out.json").exists()


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
        needs = frozenset()

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


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--steps", "-3"], "steps: "),
        (["--batch", "0"], "batch: "),
        (["--lr", "-1"], "lr: "),
        (["--size", "[48]"], "size: "),
        (["--step", "3"], "did you mean 'steps'?"),
        (["--precision", "foo"], "'foo'"),
        (["--precision", "16-mixed"], "precision 16-mixed overflows in training; use bf16-mixed, bf16-true or 32-true"),
        (["--precision", "16-true"], "precision 16-true overflows in training; use bf16-mixed, bf16-true or 32-true"),
        (["--accelerator", "foo"], "'foo'"),
        (["--data.init_args.views", "[1, 999]"], "views is (1, 999), but must be"),
        (["--encoder.init_args.heads", "[]"], "TinyGeo has no head to learn by; give encoder.init_args.heads some of"),
        (["--encoder", "gnomon.vlm.geometry.known.Known"], "Known has no parameters"),
        (PI3, "Pi3 has points or cameras in no view's frame that is known beforehand"),
        (DEPTH, "DepthOnly goes by cameras that are known, which it is to be taught; use another"),
        ([*DA3, "--encoder.init_args.condition", "true"], "to be taught; set encoder.init_args.condition to false"),
        ([*DA3, "--encoder.init_args.reference", "middle"], "depth alone, or use encoder.init_args.reference first"),
        (["--resume"], "holds no run to resume; start one without --resume"),
    ],
)
def test_wrong_options_are_one_line_and_leave_no_directory(tmp_path, capsys, options, message):
    assert fit(tmp_path / "run", *options) == 2
    err = capsys.readouterr().err
    assert message in err and err.startswith("gnomon: ") and err.count("\n") == 1 and not (tmp_path / "run").exists()


def test_places_that_cannot_be_written_are_one_line(tmp_path, capsys):
    (tmp_path / "file").touch()
    for out, message in ((tmp_path / "file", "is a file; choose"), (tmp_path / "file" / "x", "cannot be written")):
        assert fit(out) == 2
        err = capsys.readouterr().err
        assert message in err and "another --out" in err and err.count("\n") == 1


def test_a_source_without_geometry_teaches_nothing(tmp_path, capsys):
    plain = '{"class_path": "gnomon.data.sources.diagrams.source.Diagrams", "init_args": {"count": 4}}'
    config = yaml.safe_load(CONFIG.read_text())
    config["data"] = yaml.safe_load(plain)
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(config))
    assert main(["fit-geometry", "--config", str(tmp_path / "c.yaml"), "--out", str(tmp_path / "run")]) == 2
    assert "lacks intrinsics, extrinsics, depth; an encoder learns from" in capsys.readouterr().err


def test_another_configuration_is_not_resumed_unless_asked_for(whole, tmp_path, capsys):
    out = tmp_path / "run"
    shutil.copytree(whole, out)
    assert fit(out, "--resume", "--lr", "0.1") == 2
    assert "lr: 0.0006 -> 0.1; resume with --accept_changes" in capsys.readouterr().err
    assert fit(out, "--resume", "--lr", "0.1", "--accept_changes") == 0


def test_a_damaged_configuration_is_told_in_one_line(whole, tmp_path, capsys):
    out = tmp_path / "run"
    shutil.copytree(whole, out)
    for content in ("a: [", ""):
        (out / "config.yaml").write_text(content)
        assert fit(out, "--resume") == 2
        said = capsys.readouterr().err.strip().splitlines()
        assert said[-1] == f"gnomon: {out / 'config.yaml'} is damaged; choose another --out"


def test_a_loss_that_is_no_number_ends_the_run_in_one_line(tmp_path, capsys):
    assert fit(tmp_path / "run", "--lr", "1e30") == 1
    assert "is nan; lower --lr, and go on from the last checkpoint" in capsys.readouterr().err


def test_a_full_disk_is_one_line(tmp_path, capsys, monkeypatch):
    def full(self, path, **_):
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(Trainer, "save_checkpoint", full)
    assert fit(tmp_path / "run") == 1
    assert "no space left on the disk" in capsys.readouterr().err


def test_workers_go_on_through_signals_that_reach_all_processes():
    feed = Feed(Scenes(count=5, size=(48, 48), views=2), ViewsSpec(8), Order(5, batch=1), 12)
    batches = iter(feed.loader(start=0, workers=1))
    next(batches)
    (worker,) = multiprocessing.active_children()
    for number in (signal.SIGINT, signal.SIGTERM):
        os.kill(worker.pid, number)
    assert len(list(batches)) == 11 and worker.is_alive()


def test_ctrl_c_saves_and_says_how_to_go_on(tmp_path):
    """To all processes, as a terminal sends it."""
    out = tmp_path / "run"
    few = ["--steps", "4000", "--batch", "1", "--warmup", "1", "--workers", "1", "--accelerator", "cpu"]
    few += ["--data.init_args.count", "5", "--data.init_args.size", "[48, 56]", "--checkpoint_every", "1"]
    few += ["--held_out", "0"]
    command = ["fit-geometry", "--config", str(CONFIG), "--out", str(out)]
    # a shell that runs tests in the background has its children ignore Ctrl-C
    default = partial(signal.signal, signal.SIGINT, signal.default_int_handler)
    running = subprocess.Popen(
        [sys.executable, "-m", "gnomon.cli.main", *command, *few],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=default,
    )
    while newest(out / "checkpoints") is None and running.poll() is None:
        time.sleep(0.05)
    os.killpg(running.pid, signal.SIGINT)
    _, said = running.communicate(timeout=120)
    assert running.returncode == 130, said
    assert f"--config {out / 'config.yaml'} --out {out} --resume" in said and "Traceback" not in said
    # the command that it names, to an end that is near
    near = str(int(newest(out / "checkpoints").name.removeprefix("step-")) + 1)
    command[2] = str(out / "config.yaml")
    assert main([*command, "--resume", "--steps", near, "--accept_changes"]) == 0
    assert (out / "encoder" / "model.safetensors").is_file()


@pytest.mark.parametrize(("pixels", "counts"), [(0, False), (100, False), (101, True)])
def test_views_of_next_to_nothing_teach_no_camera(pixels, counts):
    batch = Feed(Scenes(count=1, size=(48, 48), views=3), ViewsSpec(8), Order(1, batch=1), 1)[0]
    batch.depth[0, 2] = 0
    batch.depth[0, 2].flatten()[:pixels] = 5
    torch.manual_seed(0)
    encoder = TinyGeo(frozen=False)
    world = rays.points(rays.from_cameras(batch.extrinsics, batch.intrinsics, size=(48, 48)), batch.depth)
    truth = normalise(batch.extrinsics, world, batch.depth, batch.depth > 0)
    target = pose.encode(truth.extrinsics, batch.intrinsics, size=(48, 48))
    found = encoder.measure(GeometryInput(batch.images, batch.valid), heads=["camera"]).pose
    error = (found - target).abs()[:, : 3 if counts else 2]
    expected = error[..., :3].mean() + error[..., 3:7].mean() + error[..., 7:].mean() / 2
    torch.testing.assert_close(losses(encoder, batch)["camera"], expected)


def test_a_metric_scale_is_taught():
    """HorizonStream's head of it has a gradient, and the right scale costs nothing."""
    batch = Feed(Scenes(count=2, size=(56, 56), views=2), ViewsSpec(14), Order(2, batch=2), 1)[0]
    torch.manual_seed(0)
    sizes = {"width": 24, "embed_depth": 1, "depth": 2, "attention_heads": 2, "taps": (0, 0, 1, 1), "features": 8}
    few = {"channels": (4, 8, 8, 8), "pose_tokens": 2, "memory_layers": (0,), "frozen": False}
    encoder = HorizonStream(**sizes, **few)
    losses(encoder, batch)["scale"].backward()
    assert any(bool(p.grad.any()) for p in encoder.metric_readout_head.parameters())
    world = rays.points(rays.from_cameras(batch.extrinsics, batch.intrinsics, size=(56, 56)), batch.depth)
    right = normalise(batch.extrinsics, world, batch.depth, batch.depth > 0).scale

    class Told(HorizonStream):
        def forward(self, scenes, *, layers=(), heads=()):
            learned = (factor * right).requires_grad_()
            return replace(super().forward(scenes, layers=layers, heads=heads), scale=learned)

    encoder.__class__ = Told
    for factor in (1, 3):
        assert float(losses(encoder, batch)["scale"].detach()) == pytest.approx(math.log(factor), abs=1e-5)
