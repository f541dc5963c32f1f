"""Every run configuration and every overlay parses against the signatures that it configures."""

from pathlib import Path

import pytest

from gnomon.train.parsing import FitCLI
from gnomon.vlm.compute.base import VisualCompute
from gnomon.vlm.connectors.base import Bridge
from gnomon.vlm.mixers.base import Mixer
from gnomon.vlm.part import build
from gnomon.vlm.reduction.base import TokenReducer
from gnomon.vlm.save import from_config

ROOT = Path(__file__).resolve().parents[2] / "configs"
MODEL = str(ROOT / "model" / "demo.yaml")
RUNS = sorted(ROOT.glob("demo/*.yaml"))
REDUCTIONS = sorted(ROOT.glob("reduction/*.yaml"))
COMPUTE = sorted(ROOT.glob("compute/*.yaml"))
MIXERS = sorted(ROOT.glob("mixers/*.yaml"))
CONNECTORS = sorted(ROOT.glob("connectors/*.yaml"))


def parse(*configs, out):
    return FitCLI([*(word for config in configs for word in ("--config", str(config))), "--out", str(out)])


@pytest.mark.parametrize("config", RUNS, ids=lambda path: path.stem)
def test_a_run_makes_its_data_and_recipe(config, tmp_path):
    cli = parse(MODEL, config, out=tmp_path)
    cli.instantiate()
    assert len(cli.config_init.data.train_source) > 0
    stages = cli.config_init.recipe.stages()
    assert stages and all(stage.rates for stage in stages)


@pytest.mark.parametrize("overlay", CONNECTORS, ids=lambda path: path.stem)
def test_a_connector_overlay_replaces_the_connector(overlay, tmp_path):
    model = parse(MODEL, RUNS[0], overlay, out=tmp_path).plain()["model"]
    connector = build(model["connector"], Bridge)
    assert type(connector).__module__.endswith(f".{overlay.stem}")


@pytest.mark.parametrize("overlay", REDUCTIONS, ids=lambda path: path.stem)
def test_a_reduction_overlay_names_its_reducer(overlay, tmp_path):
    model = parse(MODEL, RUNS[0], overlay, out=tmp_path).plain()["model"]
    # the reducer alone: a paper's stages may lie deeper than the demo has layers
    reducer = build(model["reducers"][-1], TokenReducer)
    assert type(reducer).__module__.endswith(f".{overlay.stem}")


def test_every_reducer_has_an_overlay():
    files = {path.stem for path in (ROOT.parent / "vlm" / "reduction").glob("*.py")} - {"base"}
    assert files == {path.stem for path in REDUCTIONS}


@pytest.mark.parametrize("overlay", COMPUTE, ids=lambda path: path.stem)
def test_a_compute_overlay_names_its_policy(overlay, tmp_path):
    model = parse(MODEL, RUNS[0], overlay, out=tmp_path).plain()["model"]
    policy = build(model["compute"], VisualCompute)
    assert type(policy).__module__.endswith(f".{overlay.stem}")


def test_every_policy_has_an_overlay():
    files = {path.stem for path in (ROOT.parent / "vlm" / "compute").glob("*.py")} - {"base"}
    assert files == {path.stem for path in COMPUTE}


@pytest.mark.parametrize("overlay", MIXERS, ids=lambda path: path.stem)
def test_a_mixer_overlay_names_its_mixer(overlay, tmp_path):
    model = parse(MODEL, RUNS[0], overlay, out=tmp_path).plain()["model"]
    # those that let tokens see the future are for the encoder
    given = model["mixers"] or model["encoder"]["init_args"]["mixers"]
    mixer = build(given[-1], Mixer)
    assert type(mixer).__module__.endswith(f".{overlay.stem}")


def test_every_mixer_has_an_overlay():
    files = {path.stem for path in (ROOT.parent / "vlm" / "mixers").glob("*.py")} - {"base"}
    assert files == {path.stem for path in MIXERS}


def test_the_demo_is_small_and_needs_no_network():
    model = from_config(Path(MODEL))
    assert sum(p.numel() for p in model.parameters()) <= 8_000_000
    assert model.tokenizer.eos_token_id == 1


def test_no_yaml_is_left_out():
    known = {"auxiliary", "base", "compute", "connectors", "demo", "mixers", "model", "checkpoints", "reduction"}
    # fusion, geometry, operators and recipes have tests of their own
    known |= {"crossview", "fit_geometry", "fusion", "geometry", "operators", "recipes"}
    assert {path.name for path in ROOT.iterdir() if path.is_dir()} <= known, "a new folder of configs needs a test here"
