"""A model of two layers, sixty tiny conversations, and `gnomon fit` in a process of its own."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from PIL import Image
from safetensors.torch import load_file

from gnomon.cli.main import main
from gnomon.data import tokenizer as tokenizers
from gnomon.train.module import StageModule

WORDS = ("point", "line", "circle", "angle", "A", "B", "C", "7", "4")


def write_rows(folder: Path, name: str, images: list[bool]) -> Path:
    """A LLaVA file whose i-th row has an image or not; answers of different lengths."""
    rng = np.random.default_rng(0)
    rows = []
    for i, has_image in enumerate(images):
        words = [WORDS[k] for k in rng.integers(len(WORDS), size=1 + i % 5)]
        talk = [{"from": "human", "value": f"what is {WORDS[i % 4]} {i}?"}, {"from": "gpt", "value": " ".join(words)}]
        row = {"id": f"row-{i}", "conversations": talk}
        if has_image:
            Image.fromarray(rng.integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(folder / f"{i}.png")
            row["image"] = f"{i}.png"
        rows.append(json.dumps(row))
    path = folder / name
    path.write_text("\n".join(rows))
    return path


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with tokenizer, data and config.yaml."""
    folder = tmp_path_factory.mktemp("demo")
    tokenizers.save(
        tokenizers.train(["what is point line circle angle A B C 7 4 ?"] * 4, size=300), folder / "tokenizer"
    )
    rows = write_rows(folder, "rows.jsonl", [i % 3 != 1 for i in range(60)])
    lm = {"model_type": "llama", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    lm |= {"num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": 300, "max_position_embeddings": 256}
    vit = {"img_size": 32, "patch_size": 16, "embed_dim": 24, "depth": 2, "num_heads": 2}
    config = {
        "seed_everything": 0,
        "trainer": {"accelerator": "cpu", "devices": 1, "max_steps": 6, "log_every_n_steps": 1},
        "model": {
            "encoder": {
                "class_path": "gnomon.vlm.encoders.timm.Timm",
                "init_args": {"name": "vit_tiny_patch16_224", "args": vit},
            },
            "connector": {"class_path": "gnomon.vlm.connectors.mlp.MLP", "init_args": {}},
            "lm": {
                "class_path": "gnomon.vlm.hf.CausalLM",
                "init_args": {"config": {**lm, "attention_dropout": 0.1}, "tokenizer": str(folder / "tokenizer")},
            },
            "image_size": [32, 32],
            "template": "demo",
        },
        "recipe": {"class_path": "gnomon.train.recipes.sft.SFT", "init_args": {"lr": 3e-3}},
        "data": {"train": llava(rows), "batch_size": 4, "workers": 0},
        "checkpoint": {"every": 2},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return folder


def llava(rows: Path) -> dict:
    return {
        "class_path": "gnomon.data.sources.jsonl.LlavaJson",
        "init_args": {"path": str(rows), "images": str(rows.parent)},
    }


@pytest.fixture
def by_turns(demo: Path, tmp_path: Path) -> Callable[[str], dict[str, Any]]:
    """The data of a configuration: S a scene, P a picture, T text, in this order."""

    def make(kinds: str) -> dict[str, Any]:
        rows = write_rows(demo, f"{tmp_path.name}.jsonl", [kind == "P" for kind in kinds if kind in "PT"])
        lines, sources = iter(rows.read_text().splitlines()), []
        for i, kind in enumerate(kinds.replace(" ", "")):
            if kind == "S":
                made = {"count": 1, "seed": i, "size": [64, 64], "tasks": ["nearer"], "prompt": "words"}
                sources.append({"class_path": "gnomon.data.sources.scenes.source.Scenes", "init_args": made})
                continue
            single = demo / f"{tmp_path.name}-{i}.jsonl"
            single.write_text(next(lines))
            sources.append(llava(single))
        mixture = {"class_path": "gnomon.data.sources.mixture.Mixture", "init_args": {"sources": sources}}
        return {"train": mixture, "shuffle": False}

    return make


@pytest.fixture
def command(demo: Path) -> Callable[..., list[str]]:
    """The command line of `gnomon fit` on the demo."""

    def make(out: Path, *options: str) -> list[str]:
        base = ["--config", str(demo / "config.yaml"), "--out", str(out)]
        return [sys.executable, "-m", "gnomon.cli.main", "fit", *base, *options]

    return make


@pytest.fixture
def environment() -> dict[str, str]:
    """One thread per process, and a port that no other test uses."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return {**os.environ, "OMP_NUM_THREADS": "1", "MASTER_PORT": str(port), "TOKENIZERS_PARALLELISM": "false"}


@pytest.fixture
def launch(command: Callable[..., list[str]], environment: dict[str, str]) -> Callable[..., str]:
    """Run it in a process of its own; returns what it said, and fails with it where the exit code is not `code`."""

    def run(out: Path, *options: str, code: int = 0) -> str:
        done = subprocess.run(command(out, *options), env=environment, capture_output=True, text=True, timeout=200)
        assert done.returncode == code, f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stderr

    return run


@pytest.fixture
def fit(demo: Path, capsys: pytest.CaptureFixture) -> Callable[..., str]:
    """Run it here, which spares the imports; returns what it said."""

    def run(out: Path, *options: str, code: int = 0) -> str:
        capsys.readouterr()
        returned = main(["fit", "--config", str(demo / "config.yaml"), "--out", str(out), *options])
        said = capsys.readouterr().err
        assert returned == code, said
        return said

    return run


@pytest.fixture
def forked(demo: Path, tmp_path: Path) -> Callable[..., tuple[int, str]]:
    """Run it in a fork after `change()`; returns its exit code (negative: the signal it died of) and what it said."""

    def run(out: Path, *options: str, change: Callable[[], None], watch: Callable[[int], None] | None = None):
        said = tmp_path / "said.txt"
        child = os.fork()
        if child == 0:
            change()
            _become(said, {}, demo, out, *options)
        if watch is not None:
            watch(child)
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), said.read_text()

    return run


@pytest.fixture
def killed(forked: Callable[..., tuple[int, str]]) -> Callable[..., None]:
    """Run it in a fork that kills itself (SIGKILL) when it enters a method of StageModule for the n-th time."""

    def run(out: Path, method: str, nth: int, *options: str) -> None:
        code, said = forked(out, *options, change=lambda: on_call(StageModule, method, nth, _die))
        assert code == -signal.SIGKILL, said

    return run


@pytest.fixture(name="on_call")
def _on_call() -> Callable[..., None]:
    return on_call


def on_call(owner: type, method: str, nth: int, act: Callable[[], None]) -> None:
    """Change a class so that the n-th call of one of its methods does something else first; for forks only."""
    original, calls = getattr(owner, method), []

    def counting(self: Any, *args: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) == nth:
            act()
        return original(self, *args, **options)

    setattr(owner, method, counting)


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _become(said: Path, variables: dict[str, str], demo: Path, out: Path, *options: str) -> None:
    """Turn this fork into `gnomon fit`."""
    sys.stdout = sys.stderr = said.open("w", buffering=1)
    os.environ |= variables
    rank_zero_only.rank = int(variables.get("RANK", 0))
    code = 1
    try:
        code = main(["--traceback", "fit", "--config", str(demo / "config.yaml"), "--out", str(out), *options])
    except BaseException:
        traceback.print_exc()
        raise
    finally:
        os._exit(code)


@pytest.fixture
def ranks(demo: Path, environment: dict[str, str], tmp_path: Path) -> Callable[..., str]:
    """Run it on two forked processes, as torchrun would start them; returns what rank 0 said."""
    os.environ["DS_ACCELERATOR"] = "cpu"
    # once here instead of in every fork
    import deepspeed  # noqa: F401

    def run(out: Path, *options: str, code: int = 0) -> str:
        said = [tmp_path / f"rank{rank}.txt" for rank in range(2)]
        children = []
        for rank in range(2):
            place = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
            children.append(os.fork())
            if children[-1] == 0:
                _become(said[rank], environment | place, demo, out, "--trainer.devices", "2", *options)
        codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
        assert codes[0] == code, "".join(path.read_text() for path in said)
        return said[0].read_text()

    return run


@pytest.fixture
def rows() -> Callable[..., Path]:
    return write_rows


@pytest.fixture
def metric() -> Callable[..., list[float]]:
    """The values of one metric in the order they were logged."""

    def read(run: Path, name: str = "loss") -> list[float]:
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        return [line[name] for line in lines if name in line]

    return read


@pytest.fixture
def weights() -> Callable[[Path], dict[str, torch.Tensor]]:
    def read(run: Path) -> dict[str, torch.Tensor]:
        return load_file(run / "model" / "model.safetensors")

    return read
