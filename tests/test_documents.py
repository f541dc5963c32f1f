"""What README and CONTRIBUTING say is run, not believed."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from gnomon.cli.main import COMMANDS
from gnomon.cli.methods import header
from gnomon.vlm.connectors.base import Bridge
from gnomon.vlm.layout import Features
from gnomon.vlm.reduction.base import ReduceContext

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.M | re.S)


def commands() -> list[str]:
    lines = "".join(blocks(README, "bash")).replace("\\\n", " ").splitlines()
    return [line for line in lines if line.startswith("gnomon ")]


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """The README's commands follow each other, so they share a directory."""
    folder = tmp_path_factory.mktemp("readme")
    (folder / "configs").symlink_to(ROOT / "configs")
    return folder


@pytest.mark.parametrize("line", commands())
def test_readme_command(line, workplace):
    words = shlex.split(line, comments=True)[1:]
    done = subprocess.run(
        [sys.executable, "-m", "gnomon.cli.main", *words], cwd=workplace, capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 0, done.stderr


def test_readme_names_every_command():
    assert all(f"gnomon {name}" in README for name in COMMANDS)


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md"])
def test_links_and_paths_exist(name):
    text = (ROOT / name).read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (ROOT / target).exists(), f"{name} links to {target}"
    for path in re.findall(r"`((?:bench|configs|data|docs|eval|kernels|tests|train|vlm)/[\w./-]*)`", text):
        if not any(word in path for word in ("NAME", "gated", "brightest")):
            assert (ROOT / path).exists(), f"{name} names {path}"


def test_the_connector_of_contributing_works():
    code = next(block for block in blocks(CONTRIBUTING, "python") if "class Gated" in block)
    assert header(code)["rule"]
    scope = {"__name__": "gated"}
    exec(compile(code, "CONTRIBUTING.md", "exec"), scope)
    connector = scope["Gated"]()
    assert isinstance(connector, Bridge)
    connector.setup({"vision": 8}, 16)
    tokens = torch.randn(2, 6, 8)
    out = connector({"vision": Features(tokens, [(2, 3), (2, 3)])})
    torch.testing.assert_close(out.tokens, 0.5 * connector.linear(tokens))


def test_the_reducer_of_contributing_works():
    code = next(block for block in blocks(CONTRIBUTING, "python") if "class Brightest" in block)
    assert header(code)["rule"]
    scope = {"__name__": "brightest"}
    exec(compile(code, "CONTRIBUTING.md", "exec"), scope)
    pixels = torch.zeros(1, 3, 16, 24)
    pixels[0, :, 8:, :8], pixels[0, :, :8, 16:] = 1.0, 0.5
    cell = torch.cartesian_prod(torch.arange(2), torch.arange(3))[None]
    ctx = ReduceContext(torch.zeros(1, 6, 4), ["a#0"], cell, cell[..., 0] * 0, grid=(2, 3), pixels=pixels)
    # cell 3 is white, cell 2 is grey, and order is raster order
    assert scope["Brightest"](1 / 3).plan(ctx).index[0, :, 0].tolist() == [2, 3]
