"""Published weights into a module: every name and every shape has to fit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from pickle import UnpicklingError

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from gnomon.vlm import shipped


def load(module: nn.Module, path: str, *, rename: Mapping[str, str] | None = None, ignore: Sequence[str] = ()) -> None:
    """Fill the module from a file or directory; parameters on the meta device become the file's tensors.

    rename: old beginnings of names to new ones, the first that fits. ignore: beginnings (after it) not to be loaded.
    """
    state = {}
    for name, tensor in read(path).items():
        old, new = next(((o, n) for o, n in (rename or {}).items() if name.startswith(o)), ("", ""))
        name = new + name[len(old) :]
        if not name.startswith(tuple(ignore)):
            state[name] = tensor
    own = module.state_dict(keep_vars=True)
    # files hold what several names share once, under any of them
    shared = {id(own[name]): state[name] for name in own if name in state}
    state |= {name: shared[id(own[name])] for name in own if name not in state and id(own[name]) in shared}
    problems = [f"lack {name}" for name in own if name not in state]
    problems += [f"have {name}, which is unknown" for name in state if name not in own]
    problems += [
        f"have {name} of shape {tuple(state[name].shape)} instead of {tuple(own[name].shape)}"
        for name in own
        if name in state and state[name].shape != own[name].shape
    ]
    if problems:
        more = f" and {len(problems) - 3} more such" if len(problems) > 3 else ""
        raise ValueError(
            f"weights {path} do not fit {type(module).__name__}: they {', '.join(problems[:3])}{more}; "
            "use the weights of this architecture or correct its options"
        )
    module.load_state_dict(state, assign=any(tensor.is_meta for tensor in own.values()))


def read(path: str) -> dict[str, Tensor]:
    """The tensors of a .safetensors, .pt, .pth or .bin file, or of all such files of one kind in a directory."""
    place = shipped.resolve(path)
    if not place.exists():
        raise ValueError(
            f"weights {path} do not exist; give a file or a directory, as `hf download NAME --local-dir DIR` makes it"
        )
    files = [place]
    if place.is_dir():
        kinds = (sorted(place.glob(pattern)) for pattern in ("*.safetensors", "*.pt", "*.pth", "*.bin"))
        files = next((found for found in kinds if found), [])
    if not files:
        raise ValueError(f"weights {path} hold no .safetensors, .pt, .pth or .bin file; give the directory that does")
    state: dict[str, Tensor] = {}
    for file in files:
        state.update(_tensors(file))
    return state


def _tensors(file: Path) -> dict[str, Tensor]:
    try:
        if file.suffix == ".safetensors":
            return load_file(file)
        found = torch.load(file, map_location="cpu", weights_only=True)
    except (SafetensorError, UnpicklingError, RuntimeError, EOFError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"weights {file} cannot be read: {reason}; download them again") from error
    if not (isinstance(found, dict) and all(isinstance(value, Tensor) for value in found.values())):
        raise ValueError(f"weights {file} are no table of tensors by name; save a state_dict")
    return found
