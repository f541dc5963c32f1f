"""A model directory: everything that makes a VLM, and nothing that needs the network.

config.json          format, class path and arguments of each part, image rule, template, free `meta`
model.safetensors    weights (in shards with an index above 5 GB), tied ones once
tokenizer/           as transformers saves it
"""

from __future__ import annotations

import difflib
import inspect
import json
import re
from collections.abc import Collection, Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
import yaml
from huggingface_hub import save_torch_state_dict
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from gnomon.vlm import shipped
from gnomon.vlm.auxiliary.base import AuxLoss
from gnomon.vlm.compute.base import VisualCompute
from gnomon.vlm.connectors.base import Bridge
from gnomon.vlm.directory import whole
from gnomon.vlm.encoders.base import Encoder
from gnomon.vlm.fusion.base import Fusion
from gnomon.vlm.geometry.base import GeometryEncoder
from gnomon.vlm.hf import CausalLM
from gnomon.vlm.mixers.base import Mixer
from gnomon.vlm.model import VLM
from gnomon.vlm.part import build
from gnomon.vlm.reduction.base import TokenReducer

FORMAT = 1
"""Raised when a directory of today can no longer be read by the code of yesterday."""

_FAMILIES = {"encoder": Encoder, "connector": Bridge, "lm": CausalLM}
_OPTIONAL = {"compute": VisualCompute, "geometry": GeometryEncoder, "fusion": Fusion}
_WEIGHTS = "model.safetensors"


class _Loader(yaml.SafeLoader):
    """Reads 1e-5 as a number, as jsonargparse does; to YAML 1.1 it is a string."""


_EXPONENT = re.compile(r"^[-+]?\d+(\.\d*)?[eE][-+]?\d+$")
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _EXPONENT, list("-+0123456789"))


def save(
    model: VLM, path: str | Path, *, meta: dict[str, Any] | None = None, state: dict[str, Tensor] | None = None
) -> Path:
    """Write the directory, all or nothing: what stood there before is replaced once the new one is complete.

    meta: anything JSON holds, such as where the weights came from. state: gathered weights of a sharded model.
    """
    path = Path(path)
    with whole(path, ours=_is_model) as draft:
        _write(model, draft, meta or {}, model.state_dict() if state is None else state)
    return path


def load(
    path: str | Path,
    *,
    device: str | torch.device = "cpu",
    dtype: str | torch.dtype | None = None,
    aux: bool = False,
) -> VLM:
    """The model in a directory, or a shipped one by its name, in evaluation mode.

    dtype: of the weights, by default as saved; what is computed and not saved (rotary frequencies) keeps its precision.
    aux: with the auxiliary losses, which are of no use but in training.
    """
    if isinstance(dtype, str):
        if dtype not in ("float32", "bfloat16", "float16"):
            raise ValueError(f"dtype {dtype!r} is unknown; use float32, bfloat16 or float16")
        dtype = getattr(torch, dtype)
    path = resolve(path)
    source = read_config(path)["model"]
    if not aux:
        source.pop("aux", None)
    if (path / "tokenizer").is_dir() and isinstance(source.get("lm"), dict):
        source["lm"].setdefault("init_args", {})["tokenizer"] = str(path / "tokenizer")
    model = from_config(source)
    _fill(model, path, dtype)
    return model.to(device).eval()


def from_config(source: str | Path | dict[str, Any]) -> VLM:
    """A model from VLM's arguments; a file has them under `model`, as configs/model/*.yaml do."""
    if not isinstance(source, dict):
        source = _section(Path(source))
    known = [name for name in inspect.signature(VLM.__init__).parameters if name != "self"]
    for name in source:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1) or known
            raise ValueError(f"a model has no option {name!r}; did you mean {' or '.join(near)}?")
    for name in _FAMILIES:
        if not isinstance(source.get(name), dict) or "class_path" not in source[name]:
            raise ValueError(f"the model's {name} needs a class_path and init_args, not {source.get(name)!r}")
    parts: dict[str, Any] = {name: build(source[name], family) for name, family in _FAMILIES.items()}
    parts["reducers"] = [build(spec, TokenReducer) for spec in source.get("reducers") or ()]
    parts["mixers"] = [build(spec, Mixer) for spec in source.get("mixers") or ()]
    parts["aux"] = [build(spec, AuxLoss) for spec in source.get("aux") or ()]
    for name, family in _OPTIONAL.items():
        if source.get(name) is not None:
            parts[name] = build(source[name], family)
    return VLM(**{**source, **parts})


def _section(path: Path) -> dict[str, Any]:
    """What a YAML file has under `model`."""
    try:
        given = yaml.load(path.read_text(), _Loader)
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is no YAML: {' '.join(str(error).split())}; correct it") from error
    found = given.get("model") if isinstance(given, dict) else None
    if not isinstance(found, dict):
        raise ValueError(f"{path} describes no model; write its parts under `model:`, as configs/model/*.yaml do")
    return found


def resolve(name: str | Path) -> Path:
    """A model directory: a path, or the name of a model that comes with the package."""
    path = Path(name)
    if path.is_dir():
        return path
    if path.exists():
        raise ValueError(f"{name} is a file; a gnomon model is a directory")
    ours = shipped.place("checkpoints")
    if path.name == str(name) and (ours / path.name).is_dir():
        return ours / path.name
    names = sorted(entry.name for entry in ours.iterdir() if entry.is_dir()) if ours.is_dir() else []
    raise ValueError(f"there is no model directory {name}; models in the package: {', '.join(names) or 'none'}")


def read_config(path: Path) -> dict[str, Any]:
    """config.json of a model directory, checked."""
    if not (path / "config.json").is_file():
        remedy = "a gnomon model directory has one (see gnomon fit)"
        if (path / "model/config.json").is_file():
            remedy = f"the model of this run is {path / 'model'}"
        raise ValueError(f"{path} has no config.json; {remedy}")
    try:
        config = json.loads((path / "config.json").read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{path / 'config.json'} is not JSON ({error}); it is damaged, use another copy") from error
    if not isinstance(config, dict) or not {"gnomon", "format", "model"} <= config.keys():
        raise ValueError(
            f"{path} is not a gnomon model (config.json lacks gnomon, format, model); gnomon fit writes one"
        )
    if config["format"] > FORMAT:
        raise ValueError(f"{path} has format {config['format']}, this gnomon reads up to {FORMAT}; upgrade gnomon")
    return config


def describe(model: VLM) -> dict[str, Any]:
    """VLM's arguments in plain types: what `from_config` takes."""
    image = model.image
    # what few models need is written for those alone
    rare = {"least": image.least, "canvases": [list(c) for c in image.canvases], "positions": image.positions}
    usual = {"least": 0, "canvases": [], "positions": "sequence"}
    return {
        **{name: getattr(model, name).spec() for name in _FAMILIES},
        "image_size": None if image.size is None else list(image.size),
        "image_fit": image.fit,
        "image_limit": image.limit,
        "image_mean": list(image.mean),
        "image_std": list(image.std),
        **{f"image_{name}": value for name, value in rare.items() if value != usual[name]},
        "template": model.template,
        "reducers": [reducer.spec() for reducer in model.reducers],
        **({"mixers": [mixer.spec() for mixer in model.mixers]} if model.mixers else {}),
        **({"aux": [loss.spec() for loss in model.aux]} if model.aux else {}),
        **{name: part.spec() for name in _OPTIONAL if (part := getattr(model, name)) is not None},
        **({"max_views": model.max_views} if model.max_views is not None else {}),
    }


def _is_model(path: Path) -> bool:
    file = path / "config.json"
    return file.is_file() and '"gnomon"' in file.read_text()


def _write(model: VLM, path: Path, meta: dict[str, Any], state: dict[str, Tensor]) -> None:
    config = {"gnomon": _version(), "format": FORMAT, "model": describe(model), "meta": meta}
    (path / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    aliases = _aliases(model)
    save_torch_state_dict({name: tensor for name, tensor in state.items() if name not in aliases}, path)
    given = model.lm.init_args
    if given.get("tokenizer") or given.get("path"):
        model.tokenizer.save_pretrained(path / "tokenizer")


def _version() -> str:
    try:
        return version("gnomon")
    except PackageNotFoundError:
        # run from a source tree that is not installed
        return "source"


def _aliases(model: nn.Module) -> dict[str, str]:
    """Further names of tied parameters, and the name they are saved under."""
    first: dict[int, str] = {}
    every = model.named_parameters(remove_duplicate=False)
    return {name: first[id(p)] for name, p in every if first.setdefault(id(p), name) != name}


def _tensors(path: Path) -> Iterator[tuple[str, Tensor]]:
    index = path / f"{_WEIGHTS}.index.json"
    names = sorted(set(json.loads(index.read_text())["weight_map"].values())) if index.is_file() else [_WEIGHTS]
    for name in names:
        if not (path / name).is_file():
            raise ValueError(f"{path} lacks {name}; the copy is incomplete")
        try:
            with safe_open(path / name, framework="pt") as file:
                for key in file.keys():  # noqa: SIM118  safe_open is not a mapping
                    yield key, file.get_tensor(key)
        except SafetensorError as error:
            raise ValueError(f"{path / name} is damaged ({error}); use another copy") from error


def _fill(model: VLM, path: Path, dtype: torch.dtype | None) -> None:
    """Every weight from the files, or an error that names what does not fit."""
    aliases = _aliases(model)
    wanted = {name: tensor for name, tensor in model.state_dict(keep_vars=True).items() if name not in aliases}
    unexpected = []
    for name, tensor in _tensors(path):
        if name.startswith("aux.") and not model.aux:
            # of losses that were left out
            continue
        target = wanted.pop(aliases.get(name, name), None)
        if target is None:
            unexpected.append(name)
        elif target.shape != tensor.shape:
            shapes = f"{tuple(tensor.shape)}, the model wants {tuple(target.shape)}"
            raise ValueError(f"{path}: weight {name} has shape {shapes}; it belongs to another config.json")
        else:
            # the parameter object stays, so that what is tied stays tied
            target.data = tensor.to(dtype) if tensor.is_floating_point() else tensor
    wrong = [_listed(names, what) for names, what in ((wanted, "missing"), (unexpected, "unexpected")) if names]
    if wrong:
        raise ValueError(f"{path}: weights {' and '.join(wrong)}; config.json and weights do not belong together")


def _listed(names: Collection[str], what: str) -> str:
    some = ", ".join(sorted(names)[:3]) + (", ..." if len(names) > 3 else "")
    return f"{len(names)} {what} ({some})"
