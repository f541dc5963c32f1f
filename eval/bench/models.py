"""A model to measure: from its directory, or built from a preset, whose untrained parts are as fast as trained ones."""

from __future__ import annotations

from pathlib import Path

from gnomon.eval import session
from gnomon.vlm import shipped
from gnomon.vlm.model import VLM
from gnomon.vlm.save import from_config


def presets() -> dict[str, Path]:
    return {file.stem: file for file in sorted(shipped.place("model").glob("*.yaml"))}


def open_model(name: str, *, device: str = "auto", dtype: str = "auto") -> VLM:
    """name: a model directory, a shipped model, a YAML file, or a preset of configs/model."""
    file = Path(name) if name.endswith((".yaml", ".yml")) else None if Path(name).is_dir() else presets().get(name)
    if file is None:
        return session.open_model(name, device=device, dtype=dtype).model
    if not file.is_file():
        raise ValueError(
            f"{name} is not a file; give a YAML preset, a model directory, or one of {', '.join(presets())}"
        )
    where, precision = session.place(device, dtype)
    model = from_config(file).to(where)
    for weight in model.parameters():
        # only the weights: rotary tables keep their precision
        weight.data = weight.data.to(session.DTYPES[precision])
    return model.eval()
