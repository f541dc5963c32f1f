"""What identifies a model: its name for people, its hash for results."""

import shutil

from gnomon.eval.session import fingerprint, open_model


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
