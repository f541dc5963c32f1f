from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from gnomon.vlm.multiview.weights import load


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Linear(2, 3)
        self.two = self.one


def saved(folder: Path, name: str, state: dict[str, torch.Tensor]) -> str:
    path = folder / name
    save_file(state, path) if path.suffix == ".safetensors" else torch.save(state, path)
    return str(path)


def state(**more: torch.Tensor) -> dict[str, torch.Tensor]:
    return {"weight": torch.ones(3, 2), "bias": torch.arange(3.0), **more}


@pytest.mark.parametrize("name", ["a.safetensors", "a.pt", "a.bin"])
@pytest.mark.parametrize("directory", [True, False])
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_load(tmp_path: Path, name: str, directory: bool, device: str):
    path = saved(tmp_path, name, state())
    module = nn.Linear(2, 3, device=device)
    load(module, str(tmp_path) if directory else path)
    assert torch.equal(module(torch.ones(2)), torch.tensor([2.0, 3.0, 4.0]))
    assert module.weight.requires_grad


def test_parts_of_a_directory_are_read_together(tmp_path: Path):
    for name, value in state().items():
        saved(tmp_path, f"{name}.safetensors", {name: value})
    load(nn.Linear(2, 3), str(tmp_path))


def test_names_are_changed_and_passed_over(tmp_path: Path):
    path = saved(tmp_path, "a.pt", {f"model.{name}": value for name, value in state(other=torch.ones(1)).items()})
    module = nn.Linear(2, 3)
    load(module, path, rename={"model.": ""}, ignore=["oth"])
    assert module.bias.tolist() == [0, 1, 2]


@pytest.mark.parametrize("kept", ["one", "two"])
def test_what_is_shared_is_stored_once(tmp_path: Path, kept: str):
    module = Tied()
    load(module, saved(tmp_path, "a.safetensors", {f"{kept}.{name}": value for name, value in state().items()}))
    assert module.one.bias.tolist() == [0, 1, 2] and module.two is module.one


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"weight": torch.ones(3, 2)}, "lack bias"),
        (state(extra=torch.ones(1)), "have extra, which is unknown"),
        (state(bias=torch.ones(4)), r"have bias of shape \(4,\) instead of \(3,\)"),
        ({f"x{i}": torch.ones(1) for i in range(5)}, "lack weight, lack bias, have x0, which is unknown and 4 more"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path: Path, given: dict[str, torch.Tensor], said: str):
    module = nn.Linear(2, 3)
    before = module.weight.clone()
    with pytest.raises(ValueError, match=said) as found:
        load(module, saved(tmp_path, "a.safetensors", given))
    assert "\n" not in str(found.value) and torch.equal(module.weight, before)


def test_what_cannot_be_read(tmp_path: Path):
    (tmp_path / "a.safetensors").write_bytes(b"nothing")
    (tmp_path / "a.pt").write_bytes(b"nothing")
    torch.save([1, 2], tmp_path / "list.pt")
    (tmp_path / "empty").mkdir()
    for name, said in {
        "a.safetensors": "cannot be read",
        "a.pt": "cannot be read",
        "list.pt": "no table of tensors",
        "empty": "hold no .safetensors",
        "nowhere": "do not exist; give a file or a directory",
    }.items():
        with pytest.raises(ValueError, match=said):
            load(nn.Linear(2, 3), str(tmp_path / name))
