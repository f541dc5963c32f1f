"""What is installed: the wheel's contents, and that our `kernels` folder never stands in for somebody else's."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PROBE = (
    "import transformers.utils.import_utils as u, importlib.util as i; "
    "print(u.is_kernels_available(), i.find_spec('kernels'))"
)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    out = tmp_path_factory.mktemp("wheel")
    build = out / "build"
    command = [
        sys.executable,
        "setup.py",
        "-q",
        "build",
        "-b",
        str(build),
        "egg_info",
        "-e",
        str(out),
        "bdist_wheel",
        "-d",
        str(out),
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return zipfile.ZipFile(next(out.glob("*.whl")))


def test_wheel_holds_every_module_under_the_namespace(wheel):
    names = set(wheel.namelist())
    folders = ("cli", "data", "eval", "kernels", "train", "vlm")
    expected = {f"gnomon/{f.relative_to(ROOT).as_posix()}" for d in folders for f in (ROOT / d).rglob("*.py")}
    assert expected <= names, sorted(expected - names)
    assert {n for n in names if n.endswith(".py")} == expected
    assert all(n.startswith(("gnomon/", "gnomon-")) for n in names), "nothing outside the namespace"


def test_wheel_holds_configs_and_checkpoints(wheel):
    names = set(wheel.namelist())
    suffixes = {".yaml", ".json", ".safetensors", ".jinja"}
    expected = {
        f"gnomon/{f.relative_to(ROOT).as_posix()}" for f in (ROOT / "configs").rglob("*") if f.suffix in suffixes
    }
    assert expected and expected <= names, sorted(expected - names)
    assert any(n.endswith("licenses/LICENSE") for n in names)


def run(code, cwd, path=""):
    env = {**os.environ, "PYTHONPATH": path}
    done = subprocess.run([sys.executable, "-c", code], cwd=cwd, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_transformers_does_not_pick_up_our_kernels(tmp_path):
    inside, outside = run(PROBE, ROOT), run(PROBE, tmp_path)
    assert inside[0] == outside[0], "transformers sees another `kernels` from the repository root"
    run("import gnomon.kernels, transformers; from transformers import AutoModelForCausalLM", ROOT)


def test_a_real_kernels_distribution_wins(tmp_path):
    package = tmp_path / "kernels"
    package.mkdir()
    (package / "__init__.py").write_text("__version__ = '9.9.9'\nORIGIN = 'theirs'\n")
    info = tmp_path / "kernels-9.9.9.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: kernels\nVersion: 9.9.9\n")
    code = "import kernels, gnomon.kernels; print(kernels.ORIGIN, list(gnomon.kernels.__path__)[0])"
    origin, ours = run(code, ROOT, str(tmp_path))
    assert origin == "theirs"
    assert Path(ours).name == "kernels" and Path(ours) != package
