"""What identifies a model: its name for people, its hash for results."""

import shutil

import pytest
import torch

from gnomon.eval.session import fingerprint, open_model, place


def test_a_run_gives_its_name_to_its_model(model_dir, tmp_path):
    copy = shutil.copytree(model_dir, tmp_path / "demo" / "model")
    assert open_model(str(copy), device="cpu").name == "demo"
    assert open_model(str(model_dir), device="cpu").name == "tiny"


def test_the_hash_follows_the_content_alone(model_dir, tmp_path):
    copy = shutil.copytree(model_dir, tmp_path / "copy")
    (copy / "README.md").write_text("notes")
    assert fingerprint(copy) == fingerprint(model_dir)
    weights = copy / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    assert fingerprint(copy) != fingerprint(model_dir)


def test_the_dtype_is_applied(model_dir):
    loaded = open_model(str(model_dir), device="cpu", dtype="bfloat16")
    assert {str(p.dtype) for p in loaded.model.parameters()} == {"torch.bfloat16"} and loaded.dtype == "bfloat16"


def test_a_gpu_that_is_not_there_is_refused_whatever_its_number(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert place("cuda:1", "float32")[0] == torch.device("cuda", 1)
    for number in (2, 127, 128, 1000):
        with pytest.raises(ValueError, match=f"device 'cuda:{number}' was asked for and torch sees 2 GPUs"):
            place(f"cuda:{number}", "float32")
