"""What an evaluation was made with: the model from its directory, and the provenance that stands in the header."""

from __future__ import annotations

import hashlib
import platform
import re
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from gnomon.data.processor import Processor
from gnomon.eval.record import digest
from gnomon.vlm.model import VLM
from gnomon.vlm.save import load, resolve

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Loaded:
    """A model on its device, its processor, and the directory it came from."""

    name: str
    folder: Path
    model: VLM
    processor: Processor
    device: torch.device
    dtype: str


def open_model(name: str, *, device: str = "auto", dtype: str = "auto") -> Loaded:
    """The model of a directory; for auto see `place`."""
    folder = resolve(name)
    where, dtype = place(device, dtype)
    model = load(folder, device=where, dtype=DTYPES[dtype])
    processor = Processor(model.tokenizer, model.template, model.image, views=model.views)
    return Loaded(_title(folder.resolve()), folder, model, processor, where, dtype)


def place(device: str, dtype: str) -> tuple[torch.device, str]:
    """auto: the first GPU with bfloat16 where it has that, else the CPU with float32."""
    where = _device(device)
    if dtype == "auto":
        dtype = "bfloat16" if where.type == "cuda" and torch.cuda.is_bf16_supported() else "float32"
    return where, dtype


def _title(folder: Path) -> str:
    """The directory's name; of a training run's `model`, the run's."""
    return folder.parent.name if folder.name == "model" else folder.name


def _device(name: str) -> torch.device:
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto":
        return torch.device("cuda" if gpus else "cpu")
    if not re.fullmatch(r"cpu|cuda(:[0-9]+)?", name):
        raise ValueError(f"device {name!r} is unknown; use auto, cpu, cuda or cuda:N")
    kind, _, digits = name.partition(":")
    # torch keeps the number in a byte, where 128 is negative
    if kind == "cuda" and int(digits or 0) >= gpus:
        raise ValueError(
            f"device {name!r} was asked for and torch sees {gpus} GPUs; use --device cpu, or a CUDA build of torch"
        )
    return torch.device(kind, int(digits)) if digits else torch.device(kind)


def fingerprint(folder: Path) -> str:
    """One hash over the model's configuration, weights and tokenizer files."""
    parts = {}
    for path in sorted([folder / "config.json", *folder.glob("*.safetensors"), *folder.glob("tokenizer/*")]):
        sha = hashlib.sha256()
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                sha.update(block)
        parts[path.relative_to(folder).as_posix()] = sha.hexdigest()
    return digest(parts)


def identity(loaded: Loaded, benchmarks: dict[str, Any], *, max_new_tokens: int | None) -> dict[str, Any]:
    """What two sessions must share to go into one directory: all that an answer depends on."""
    return {
        "model": loaded.name,
        "model_sha256": fingerprint(loaded.folder),
        "benchmarks": benchmarks,
        "decode": {"method": "greedy", "max_new_tokens": max_new_tokens or "each item's own"},
        "device": loaded.device.type,
        "dtype": loaded.dtype,
    }


def surroundings(loaded: Loaded, *, batch_size: int, limit: int | None) -> dict[str, Any]:
    """What may differ between sessions and is written down all the same."""
    cuda = loaded.device.type == "cuda"
    return {
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "batch_size": batch_size,
        "limit": limit,
        "parameters": sum(p.numel() for p in loaded.model.parameters()),
        "attention": loaded.model.lm.attention,
        "device_name": torch.cuda.get_device_name(loaded.device) if cuda else platform.machine(),
        "threads": torch.get_num_threads(),
        "versions": {
            name: _version(name) for name in ("gnomon", "torch", "transformers", "tokenizers", "numpy", "pillow")
        }
        | {"python": platform.python_version()},
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        # run from a source tree that nobody installed
        return "not installed"
